"""Converting: real files of other formats are read, written back, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import RobertaConfig, RobertaForSequenceClassification

from loralab.adapters import PeftModel, read_adapter, write_adapter
from loralab.core.adapter import Adapter
from loralab.errors import AdapterError, ConfigError
from loralab.tools.convert import read_any, with_component, write_any
from loralab.tools.formats import REGISTRY, detect
from loralab.tools.formats._build import Hints

MakeAdapter = Callable[..., Adapter]
EXPRESSIBLE = {
    "anima_lora_kohya_format": "kohya",
    "anima_lora_kohya_with_te_format": "kohya",
    "anima_lora_peft_format": "diffusers",
    "flux_lora_aitoolkit_format": "diffusers",
    "flux_lora_diffusers_base_model_format": "peft",
    "flux_lora_diffusers_format": "diffusers",
    "flux_lora_diffusers_no_proj_mlp_format": "diffusers",
    "flux_lora_kohya_format": "kohya",
    "flux_lora_kohya_with_te1_format": "kohya",
    "flux_lora_xlabs_format": "xlabs",
    "krea2_lora_kohya_format": "kohya",
    "qwen_image_lora_diffusers_format": "diffusers",
}
REFUSED = {
    "anima_lora_lokr_format": ("diffusers", r"lokr_w1 is LoKr factors, a Kronecker product"),
    "flux_dora_onetrainer_format": ("kohya", r"dora_scale is a DoRA magnitude of LyCORIS' kind"),
    "flux_lokr_bfl_format": ("diffusers", r"lokr_w1 is LoKr factors"),
    "qwen_image_lora_kohya_format": ("kohya", r"lokr_w1 is LoKr factors"),
}


def keyshapes(assets: Path, name: str) -> dict[str, Tensor]:
    """A real file's keys with tensors of its shapes that hold no numbers, but for alphas, which are 8."""
    shapes = json.loads((assets / "adapters" / "keyshapes" / f"{name}.json").read_text())
    return {k: torch.empty(s, device="meta") if s else torch.tensor(8.0) for k, s in shapes.items()}


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_a_real_file_is_read_and_written_back_key_by_key(assets: Path, name: str) -> None:
    tensors = keyshapes(assets, name)
    format = EXPRESSIBLE[name]
    assert detect(tensors, name) == format
    entry = REGISTRY.get(format)
    adapter = entry.read(tensors, Hints(lora_alpha=4 if format == "peft" else None))
    has_alpha = any(key.endswith(".alpha") for key in tensors)
    for path, factors in adapter.modules().items():
        assert "_blocks_" not in path
        expected = 8 / factors.rank if has_alpha else 1.0
        assert factors.scaling == expected if format != "peft" else 4 / factors.rank
    pairs = [key for key in tensors if key.endswith(("lora_A.weight", "down.weight"))]
    assert len(adapter.modules()) == len(pairs)
    written = entry.write(adapter)
    if "qwen" in name:  # down, up and alpha become A and B, with the scale in B
        written = {
            k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): t for k, t in written.items()
        }
        tensors = {k: t for k, t in tensors.items() if not k.endswith(".alpha")}
    assert {k: tuple(t.shape) for k, t in written.items()} == {k: tuple(t.shape) for k, t in tensors.items()}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(assets: Path, name: str) -> None:
    tensors = keyshapes(assets, name)
    format, fault = REFUSED[name]
    assert detect(tensors, name) == format
    with pytest.raises(AdapterError, match=fault) as caught:
        REGISTRY.get(format).read(tensors, Hints())
    assert "\n" not in str(caught.value)


def test_a_control_lora_has_biases_on_b(assets: Path) -> None:
    """Read where the core has `lora_bias`, refused by that name where it has not."""
    tensors = keyshapes(assets, "flux_control_lora_format")
    try:
        adapter = REGISTRY.get("diffusers").read(tensors, Hints())
    except AdapterError as error:
        assert "lora_bias = True is not supported" in str(error)  # noqa: PT017
    else:
        assert adapter.config.lora_bias
        assert "double_blocks.0.img_attn.norm.key_norm" in (adapter.config.modules_to_save or ())


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", "unet.double_blocks.0.img_attn.qkv"),
        ("lora_unet_single_blocks_37_modulation_lin", "unet.single_blocks.37.modulation.lin"),
        ("lora_unet_txtfusion_refiner_blocks_1_attn_wq", "unet.txtfusion.refiner_blocks.1.attn.wq"),
        ("lora_unet_last_linear", "unet.last.linear"),
        ("lora_unet_tmlp_0", "unet.tmlp.0"),
        ("lora_unet_blocks_0_adaln_modulation_cross_attn_1", "unet.blocks.0.adaln_modulation_cross_attn.1"),
        ("lora_te_layers_3_mlp_gate_proj", "text_encoder.layers.3.mlp.gate_proj"),
        ("lora_te1_text_model_encoder_layers_9_mlp_fc1", "text_encoder.text_model.encoder.layers.9.mlp.fc1"),
        ("lora_unet_mid_block_attentions_0_attn2_to_out_0", "unet.mid_block.attentions.0.attn2.to_out.0"),
        ("lora_unet_down_blocks_1_resnets_0_time_emb_proj", "unet.down_blocks.1.resnets.0.time_emb_proj"),
    ],
)
def test_kohyas_underscores_become_the_dots_that_they_were(name: str, path: str) -> None:
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 4), f"{name}.lora_up.weight": torch.ones(6, 2)}
    adapter = REGISTRY.get("kohya").read(tensors, Hints())
    assert list(adapter.modules()) == [path]
    assert adapter.modules()[path].scaling == 1


def test_a_name_that_only_the_base_can_tell(tmp_path: Path) -> None:
    name = "lora_unet_gate_keeper_in_proj"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 4), f"{name}.lora_up.weight": torch.ones(6, 2)}
    with pytest.raises(AdapterError, match=r"which underscores after 'gate' were dots.*name the base"):
        REGISTRY.get("kohya").read(tensors, Hints())
    save_file(tensors, tmp_path / "lora.safetensors")
    save_file({"gate_keeper.in_proj.weight": torch.ones(6, 4)}, tmp_path / "model.safetensors")
    adapter = read_any(tmp_path / "lora.safetensors", base=str(tmp_path)).adapter
    assert list(adapter.modules()) == ["unet.gate_keeper.in_proj"]
    with pytest.raises(AdapterError, match=r"no module of that name\. Did you mean 'gate_keeper_in_proj'"):
        REGISTRY.get("kohya").read(
            {k.replace("keeper", "keepr"): t for k, t in tensors.items()},
            Hints(modules=frozenset({"gate_keeper.in_proj"})),
        )


@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft", "loralib", "xlabs"])
def test_there_and_back_is_the_same_delta(tmp_path: Path, make_adapter: MakeAdapter, format: str) -> None:
    paths = {
        "transformer.double_blocks.0.img_attn.qkv": (12, 10),
        "transformer.double_blocks.1.txt_attn.proj": (6, 10),
    }
    adapter = make_adapter(paths, lora_alpha=2)
    write_any(adapter, tmp_path / "x.safetensors", format)
    again = read_any(tmp_path / "x.safetensors", lora_alpha=2 if format in ("peft", "loralib") else None)
    assert again.format == format
    drop = "transformer." if format == "xlabs" else ""
    found = again.adapter.modules()
    for path, factors in adapter.modules().items():
        torch.testing.assert_close(found[path.removeprefix(drop)].product(), factors.product())
    if format in ("kohya", "peft", "loralib"):
        assert all(torch.equal(again.adapter.tensors[k], t) for k, t in adapter.tensors.items())


def test_the_paper_s_own_checkpoint(assets: Path, tmp_path: Path) -> None:
    """RoBERTa base on MNLI: 24 modules of rank 8, alpha 16, and a classifier of three classes."""
    file = assets / "adapters" / "loralib_roberta_base_mnli" / "roberta_base_lora_mnli.bin"
    with pytest.raises(AdapterError, match="a pickle file, which can run any program"):
        read_any(file)
    with pytest.raises(AdapterError, match="loralib files do not say lora_alpha"):
        read_any(file, allow_pickle=True)
    source = read_any(file, lora_alpha=16, base="roberta-base", allow_pickle=True)
    assert source.format == "loralib"
    adapter = source.adapter
    assert len(adapter.modules()) == 24
    assert adapter.config.modules_to_save == ["classifier"]
    assert {f.scaling for f in adapter.modules().values()} == {2.0}
    write_any(adapter, tmp_path / "peft")
    write_any(adapter, tmp_path / "again.bin", "loralib")
    stored = torch.load(file, map_location="cpu", weights_only=True)
    again = torch.load(tmp_path / "again.bin", weights_only=True)
    assert stored.keys() == again.keys()
    assert all(torch.equal(stored[key], again[key]) for key in stored)
    config = RobertaConfig(vocab_size=50, num_hidden_layers=12, num_labels=3, intermediate_size=8)
    torch.manual_seed(0)
    base = RobertaForSequenceClassification(config).eval()
    query = base.roberta.encoder.layer[3].attention.self.query.weight.detach().clone()
    loaded = PeftModel.from_pretrained(base, tmp_path / "peft")
    merged = loaded.merge_and_unload()
    a, b = (stored[f"roberta.encoder.layer.3.attention.self.query.lora_{x}"] for x in "AB")
    torch.testing.assert_close(merged.roberta.encoder.layer[3].attention.self.query.weight, query + 2 * b @ a)
    torch.testing.assert_close(
        merged.classifier.out_proj.weight.detach(), stored["classifier.out_proj.weight"]
    )


def test_loralibs_fused_layers_do_not_say_what_they_adapt() -> None:
    tensors = {"h.0.c_attn.lora_A": torch.ones(8, 768), "h.0.c_attn.lora_B": torch.ones(1536, 4)}
    with pytest.raises(AdapterError, match=r"B \[1536, 4\] times A \[8, 768\] is no product"):
        REGISTRY.get("loralib").read(tensors, Hints(lora_alpha=8))


def test_components(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    shapes = {"unet.blocks.0.q": (6, 4), "text_encoder.layers.0.q": (4, 4)}
    both = make_adapter(shapes, rank_pattern={"layers.0.q": 2}, target_modules=sorted(shapes))
    with pytest.raises(AdapterError, match="is for text_encoder, unet, and a PEFT folder is for one model"):
        with_component(both, None, keep=False)
    encoder = with_component(both, "text_encoder", keep=False)
    assert list(encoder.modules()) == ["layers.0.q"]
    assert encoder.config.target_modules == {"layers.0.q"}
    assert encoder.modules()["layers.0.q"].scaling == both.modules()["text_encoder.layers.0.q"].scaling == 3
    with pytest.raises(AdapterError, match="nothing for 'prior'; it is for text_encoder, unet"):
        with_component(both, "prior", keep=False)
    with pytest.raises(ConfigError, match=r"unknown component 'unett'.*Did you mean 'unet'"):
        with_component(both, "unett", keep=False)
    write_adapter(encoder, tmp_path / "encoder")
    back = with_component(read_adapter(tmp_path / "encoder"), "text_encoder", keep=True)
    assert list(back.modules()) == ["text_encoder.layers.0.q"]
    write_any(back, tmp_path / "te.safetensors", "kohya")
    assert "lora_te_layers_0_q.alpha" in load_file(tmp_path / "te.safetensors")
    with pytest.raises(AdapterError, match="kohya files need to know the component"):
        write_any(encoder, tmp_path / "te.safetensors", "kohya")


def test_old_attention_processors_are_modules() -> None:
    name = "unet.down_blocks.0.attn1.processor"
    tensors = {
        f"{name}.{layer}_lora.{side}.weight": torch.ones(2, 2)
        for layer in ("to_q", "to_out")
        for side in ("up", "down")
    }
    assert detect(tensors, "x") == "diffusers"
    found = REGISTRY.get("diffusers").read(tensors, Hints()).modules()
    assert set(found) == {"unet.down_blocks.0.attn1.to_q", "unet.down_blocks.0.attn1.to_out.0"}


@pytest.mark.parametrize(
    ("format", "settings", "rest", "fault"),
    [
        ("kohya", {}, {"head.weight": torch.ones(1)}, r"head\.weight: kohya files hold factors only"),
        (
            "diffusers",
            {},
            {"e.lora_embedding_A": torch.ones(1)},
            r"e\.lora_embedding_A: diffusers files have no",
        ),
        ("xlabs", {}, {}, r"unet\.x: XLabs files adapt the attention"),
        ("loralib", {"use_rslora": True}, {}, "loralib has one rank and one lora_alpha"),
        ("loralib", {}, {"unet.x.base_layer.bias": torch.ones(1)}, "loralib has no place for it"),
    ],
)
def test_what_a_format_cannot_hold_is_named(
    make_adapter: MakeAdapter, tmp_path: Path, format: str, settings: dict, rest: dict, fault: str
) -> None:
    adapter = make_adapter({"unet.x": (4, 4)}, rest=rest, **settings)
    with pytest.raises(AdapterError, match=fault):
        write_any(adapter, tmp_path / "x.safetensors", format)
    assert not list(tmp_path.iterdir())


def test_faulty_files_are_named(tmp_path: Path, make_adapter: MakeAdapter) -> None:
    file = tmp_path / "x.safetensors"

    def refused(tensors: dict[str, Tensor], fault: str, **settings: float) -> None:
        save_file(tensors, file)
        with pytest.raises((AdapterError, ConfigError), match=fault) as caught:
            read_any(file, **settings)
        assert "\n" not in str(caught.value)

    refused(
        {"some.weight": torch.ones(2)},
        "keys like 'some.weight' belong to no format known here; known are diff",
    )
    half = {"unet.q.lora_A.weight": torch.ones(2, 4)}
    refused(half, r"x\.safetensors \(diffusers\): unet\.q: factor B \(up\) is missing")
    whole = half | {"unet.q.lora_B.weight": torch.ones(4, 2), "unet.q.alpha": torch.tensor(1.0)}
    refused(whole, "lora_alpha=4 has no effect", lora_alpha=4)
    file.write_bytes(b"nothing")
    with pytest.raises(AdapterError, match="not a complete safetensors file"):
        read_any(file)
    with pytest.raises(AdapterError, match="no such file or folder"):
        read_any(tmp_path / "none.safetensors")
    (tmp_path / "x.bin").write_bytes(b"nothing")
    with pytest.raises(AdapterError, match="cannot be loaded"):
        read_any(tmp_path / "x.bin", allow_pickle=True)
    write_adapter(make_adapter(), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"lora_alpha=4 has no effect on .*a: adapter_config.json there"):
        read_any(tmp_path / "a", lora_alpha=4)
    with pytest.raises(ConfigError, match=r"must end in \.safetensors"):
        write_any(make_adapter({"unet.q": (4, 4)}), tmp_path / "x.bin", "kohya")


@pytest.mark.parametrize("name", REGISTRY.names)
def test_a_format_has_its_three_parts(name: str) -> None:
    entry = REGISTRY.get(name)
    assert entry.__doc__
    assert entry.matches([]) is False
    assert entry.matches(["some.weight"]) is False
    assert callable(entry.read)
    assert callable(entry.write)
