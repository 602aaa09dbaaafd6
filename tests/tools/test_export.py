"""Exporting: merged files against the live adapter, llama.cpp's file."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from loralab.adapters import PeftModel, get_peft_model, read_adapter
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.errors import AdapterError, ConfigError
from loralab.tools import verify as verification
from loralab.tools.export import export_merged
from loralab.tools.gguf import export_gguf

MakeAdapter = Callable[..., Adapter]
IDS = torch.arange(1, 25).view(2, 12)


def llama(tied: bool = False, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied, attention_bias=True)).to(
        dtype
    )


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=32, n_embd=24, n_layer=2, n_head=4))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


def trained(model: Any, **settings: Any) -> Adapter:
    """An adapter as training leaves it: no factor is zero, and neither is what is trained in full."""
    torch.manual_seed(1)
    adapted = get_peft_model(
        model, LoraConfig(**{"r": 3, "lora_alpha": 6, "init_lora_weights": False} | settings)
    )
    adapter = adapted.base_model.adapter("default")
    with torch.no_grad():
        for key, tensor in adapter.tensors.items():
            tensor.mul_(0.3) if ".lora_" in key else tensor.add_(torch.randn_like(tensor) * 0.1)
    return Adapter(adapter.config, {key: tensor.detach().clone() for key, tensor in adapter.tensors.items()})


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "linear": (llama, {"target_modules": "all-linear"}),
    "rslora": (llama, {"target_modules": ["q_proj"], "use_rslora": True}),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj"]}),
    "head": (llama, {"target_modules": ["lm_head", "embed_tokens"]}),
    "saved head": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "biases": (llama, {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}),
    "dora": (llama, {"target_modules": "all-linear", "use_dora": True, "use_rslora": True}),
    "dora conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "dora embeddings": (llama, {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}),
    "lora bias": (llama, {"target_modules": ["q_proj", "v_proj"], "lora_bias": True, "lora_alpha": 9}),
    "lora bias conv1d": (gpt2, {"target_modules": ["c_attn"], "lora_bias": True}),
    "both biases": (llama, {"target_modules": ["q_proj"], "lora_bias": True, "bias": "lora_only"}),
    "dora tied": (lambda: llama(True), {"target_modules": ["embed_tokens"], "use_dora": True}),
    "tied embedding": (lambda: llama(True), {"target_modules": ["embed_tokens"]}),
    "tied head": (lambda: llama(True), {"target_modules": ["lm_head", "up_proj"]}),
    "tied, untouched": (lambda: llama(True), {"target_modules": ["up_proj"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_exported_model_is_the_live_adapter(tmp_path: Path, case: str) -> None:
    make, settings = CASES[case]
    make().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    adapter = trained(make(), **settings)
    exported = export_merged(str(tmp_path / "base"), adapter, tmp_path / "out")
    assert exported.verified
    assert exported.verified.difference < 1e-4 < exported.verified.effect
    assert exported.untied is (case in ("tied embedding", "tied head", "dora tied"))
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    live = PeftModel(make(), adapter.config, adapter=adapter)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(live), atol=2e-5, rtol=1e-4)


def test_dora_over_a_convolution(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(4, 6, 3)})
    (tmp_path / "base").mkdir()
    save_file(dict(net.state_dict()), tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "none"}')
    adapter = trained(copy.deepcopy(net), target_modules=["conv"], use_dora=True)
    exported = export_merged(str(tmp_path / "base"), adapter, tmp_path / "out", check=False)
    wanted = PeftModel(net, adapter.config, adapter=adapter).merge_and_unload().conv.weight
    torch.testing.assert_close(load_file(tmp_path / "out" / "model.safetensors")["conv.weight"], wanted.data)
    assert exported.layers[0].norm > 0


def test_shards_stay_shards(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base", max_shard_size="20kB")
    adapter = trained(llama(), target_modules="all-linear")
    exported = export_merged(str(tmp_path / "base"), adapter, tmp_path / "out")
    names = {path.name for path in (tmp_path / "base").glob("*.safetensors")}
    assert len(names) > 2
    assert set(exported.files) == names == {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "out" / file)
    before = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == before["metadata"]["total_size"]


def test_a_base_of_bare_names(tmp_path: Path) -> None:
    model = gpt2()
    model.transformer.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["architectures"] = ["GPT2LMHeadModel"]
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    exported = export_merged(
        str(tmp_path / "base"), trained(gpt2(), target_modules=["c_attn"]), tmp_path / "out"
    )
    assert {layer.name for layer in exported.layers} == {"h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight"}


def test_what_rounding_takes_is_measured(tmp_path: Path) -> None:
    llama(dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    adapter = trained(llama(), target_modules=["up_proj"])
    exported = export_merged(str(tmp_path / "base"), adapter, tmp_path / "out")
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    for layer in exported.layers:
        delta = adapter.modules()[layer.name.removesuffix(".weight")].product()
        assert layer.dtype == "bfloat16"
        assert torch.equal(new[layer.name], (old[layer.name].float() + delta).bfloat16())
        applied = new[layer.name].float() - old[layer.name].float()
        assert layer.loss == pytest.approx(float((applied - delta).norm() / delta.norm()), rel=1e-5)
        assert 1e-4 < layer.loss < 0.1
    wide = export_merged(str(tmp_path / "base"), adapter, tmp_path / "wide", dtype=torch.float32)
    assert max(layer.loss for layer in wide.layers) < 1e-6
    assert {t.dtype for t in load_file(tmp_path / "wide" / "model.safetensors").values()} == {torch.float32}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "wide").dtype == torch.float32


def test_an_adapter_lost_in_rounding_is_not_exported(tmp_path: Path) -> None:
    llama(dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    weak = trained(llama(), target_modules=["up_proj"])
    weak = Adapter(weak.config, {k: t * (0.001 if "lora_B" in k else 1) for k, t in weak.tensors.items()})
    exported = export_merged(str(tmp_path / "base"), weak, tmp_path / "out", check=False)
    assert min(layer.loss for layer in exported.layers) > 0.5
    assert exported.verified is None


def test_a_model_that_does_not_agree_is_never_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama().save_pretrained(tmp_path / "base")
    adapter = trained(llama(), target_modules=["up_proj"])
    load = verification._load

    def spoilt(folder: Path) -> Any:
        model = load(folder)
        if folder.name != "base":
            model.lm_head.weight.data[0] += 0.1
        return model

    monkeypatch.setattr(verification, "_load", spoilt)
    with pytest.raises(
        AdapterError, match=r"is not the live adapter: logits differ by .* Nothing was written"
    ):
        export_merged(str(tmp_path / "base"), adapter, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_what_does_not_fit_is_named(tmp_path: Path, make_adapter: MakeAdapter) -> None:
    llama().save_pretrained(tmp_path / "base")
    path = "model.layers.0.self_attn.q_proj"

    def refused(adapter: Adapter, fault: str) -> None:
        with pytest.raises(AdapterError, match=fault) as caught:
            export_merged(str(tmp_path / "base"), adapter, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    refused(
        make_adapter({f"{path}x": (24, 24)}, base_model_name_or_path="a/b"),
        r"no tensor '.*q_projx\.weight'.*a/b",
    )
    refused(make_adapter({path: (24, 25)}), r"the delta is \[24, 25\], the base's weight \[24, 24\]")
    refused(
        make_adapter({path: (24, 24)}, use_dora=True), "lora_magnitude_vector is missing .* which is dora"
    )
    magnitude = {f"{path}.lora_magnitude_vector": torch.ones(24)}
    refused(make_adapter({path: (24, 24)}, rest=magnitude), "no tensor '.*lora_magnitude_vector'")
    bias = {"lm_head.lora_B.bias": torch.ones(40)}
    refused(make_adapter({"lm_head": (40, 24)}, rest=bias, lora_bias=True), r"no tensor 'lm_head\.bias'")
    refused(
        make_adapter({path: (24, 24)}, rest={"model.norm.weight": torch.ones(3)}),
        r"is \[3\], the base needs \[24\]",
    )
    endless = make_adapter({path: (24, 24)})
    endless.tensors[f"{path}.lora_A.weight"].fill_(float("inf"))
    refused(endless, rf"cannot export it: 96 of 96 numbers of {path}\.lora_A\.weight are not finite")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    refused(make_adapter({path: (24, 24)}), "its weights are quantized")


def gguf_tensors(file: Path) -> tuple[Any, dict[str, Tensor]]:
    gguf = pytest.importorskip("gguf", reason="writing GGUF needs the package gguf")
    reader = gguf.GGUFReader(file)
    return reader, {
        t.name: torch.from_numpy(t.data.copy()).view(*reversed(t.shape.tolist())) for t in reader.tensors
    }


def test_llama_cpps_file_holds_the_same_deltas(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="writing GGUF needs the package gguf")
    adapter = trained(llama(), target_modules="all-linear")
    config = LlamaConfig(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2).to_dict()
    assert export_gguf(adapter, config, tmp_path / "x.gguf") == 14
    reader, tensors = gguf_tensors(tmp_path / "x.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert (fields["general.architecture"], fields["general.type"]) == ("llama", "adapter")
    assert (fields["adapter.type"], fields["adapter.lora.alpha"]) == ("lora", 6.0)
    found = adapter.modules()
    for name, path in {
        "ffn_up": "mlp.up_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
    }.items():
        b, a = (tensors[f"blk.1.{name}.weight.lora_{x}"] for x in "ba")
        factors = found[f"model.layers.1.{path}"]
        torch.testing.assert_close(2 * b @ a, factors.product())
    query = tensors["blk.0.attn_q.weight.lora_b"]
    ours = adapter.tensors["model.layers.0.self_attn.q_proj.lora_B.weight"]
    for head in range(4):  # D = 6: rows i and i + 3 become rows 2i and 2i + 1
        for i in range(3):
            assert torch.equal(query[6 * head + 2 * i], ours[6 * head + i])
            assert torch.equal(query[6 * head + 2 * i + 1], ours[6 * head + i + 3])


def test_scales_that_differ_go_into_b(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="writing GGUF needs the package gguf")
    adapter = trained(llama(), target_modules=["up_proj", "down_proj"], alpha_pattern={"up_proj": 3})
    export_gguf(adapter, {"model_type": "qwen2", "num_hidden_layers": 2}, tmp_path / "x.gguf")
    reader, tensors = gguf_tensors(tmp_path / "x.gguf")
    assert reader.fields["adapter.lora.alpha"].contents() == 0
    b, a = (tensors[f"blk.0.ffn_up.weight.lora_{x}"] for x in "ba")
    torch.testing.assert_close(b @ a, adapter.modules()["model.layers.0.mlp.up_proj"].product())


def test_gguf_is_refused_where_it_cannot_be(
    tmp_path: Path, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter({"model.layers.0.self_attn.q_proj": (24, 24)})
    monkeypatch.setattr("loralab.tools.gguf.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package 'gguf'; install it"):
        export_gguf(adapter, {"model_type": "llama"}, tmp_path / "x.gguf")
    monkeypatch.undo()
    pytest.importorskip("gguf", reason="writing GGUF needs the package gguf")
    with pytest.raises(AdapterError, match="no GGUF for a base of type 'mamba' here; known are llama"):
        export_gguf(adapter, {"model_type": "mamba"}, tmp_path / "x.gguf")
    with pytest.raises(AdapterError, match=r"some\.module: llama\.cpp's llama has no tensor for it"):
        export_gguf(make_adapter({"some.module": (4, 4)}), {"model_type": "llama"}, tmp_path / "x.gguf")
    saved = make_adapter(rest={"head.weight": torch.ones(1)})
    with pytest.raises(AdapterError, match=r"head\.weight: GGUF files hold factors only"):
        export_gguf(saved, {"model_type": "llama"}, tmp_path / "x.gguf")


def test_a_trained_adapter_on_a_real_model(assets: Path, stories_model_dir: Path, tmp_path: Path) -> None:
    folder = assets / "adapters" / "peft_ref_stories260K_e2e_r8"
    exported = export_merged(str(stories_model_dir), read_adapter(folder), tmp_path / "out")
    golden = load_file(folder / "golden.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(golden["input_ids"]).logits, golden["logits"], atol=1e-4, rtol=0)
    assert len(exported.layers) == 35
