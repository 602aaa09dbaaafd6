"""Extraction: an adapter that gives the tuned model's logits back, and what it says of the rest."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from loralab.adapters import PeftModel, read_adapter, write_adapter
from loralab.core.svd import Cut
from loralab.errors import AdapterError, ModelError
from loralab.tools.extract import Extraction, extract

IDS = torch.arange(1, 25).view(2, 12)


def llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attention_bias=True,
    )
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=32, n_embd=24, n_layer=2, n_head=4)).eval()


def low_rank(weight: Tensor, rank: int) -> None:
    """Add a random matrix of a rank to a weight, in place."""
    rows, columns = weight.shape[0], weight[0].numel()
    weight.data += (torch.randn(rows, rank) @ torch.randn(rank, columns)).view_as(weight) * 0.05


def save(folder: Path, model: nn.Module, name: str) -> Path:
    model.save_pretrained(folder / name)
    return folder / name


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def matrices(model: nn.Module) -> dict[str, Tensor]:
    words = ("embed", "wte", "wpe", "lm_head")
    return {n: p for n, p in model.named_parameters() if p.dim() == 2 and not any(w in n for w in words)}


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("loader", ["loralab", "peft"])
def test_a_low_rank_change_comes_back_to_rounding(tmp_path: Path, make: Any, loader: str) -> None:
    model = make()
    base = save(tmp_path, model, "base")
    for parameter in matrices(model).values():
        low_rank(parameter, 3)
    tuned = save(tmp_path, model, "tuned")
    expected = logits(model)
    extraction = extract(base, tuned, Cut(r=3))
    assert not extraction.left
    assert extraction.adapter.config.r == extraction.adapter.config.lora_alpha == 3
    assert {layer.rank for layer in extraction.layers} == {3}
    assert max(layer.error for layer in extraction.layers) < 1e-5
    write_adapter(extraction.adapter, tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(base)
    if loader == "peft":
        peft = pytest.importorskip("peft")
        adapted = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    else:
        adapted = PeftModel.from_pretrained(again, tmp_path / "adapter")
    assert float((logits(adapted) - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_on_request(tmp_path: Path, tied: bool) -> None:
    model = llama(tied)
    base = save(tmp_path, model, "base")
    low_rank(model.model.embed_tokens.weight, 2)
    low_rank(model.model.layers[0].mlp.up_proj.weight, 2)
    if not tied:
        low_rank(model.lm_head.weight, 2)
    tuned = save(tmp_path, model, "tuned")
    without = extract(base, tuned, Cut(r=2))
    names = {left.name for left in without.left}
    assert names == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert all("was not asked for" in left.reason for left in without.left)
    extraction = extract(base, tuned, Cut(r=2), include_embeddings=True)
    assert extraction.adapter.config.target_modules == {
        "embed_tokens",
        "lm_head",
        "model.layers.0.mlp.up_proj",
    } or (extraction.adapter.config.target_modules == {"embed_tokens", "lm_head", "0.mlp.up_proj"})
    write_adapter(extraction.adapter, tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    torch.testing.assert_close(logits(adapted), logits(model), atol=1e-5, rtol=0)


def test_ranks_by_energy_are_written_by_module(tmp_path: Path) -> None:
    model = llama()
    base = save(tmp_path, model, "base")
    for number, parameter in enumerate(matrices(model).values()):
        low_rank(parameter, 1 + number % 3)
    extraction = extract(base, save(tmp_path, model, "tuned"), Cut(energy=0.999999))
    ranks = {layer.module: layer.rank for layer in extraction.layers}
    assert set(ranks.values()) == {1, 2, 3}
    for path, rank in ranks.items():
        assert extraction.adapter.config.rank_of(path) == rank
        assert extraction.adapter.config.scaling_of(path) == 1
    write_adapter(extraction.adapter, tmp_path / "adapter")
    assert read_adapter(tmp_path / "adapter").digest() == extraction.adapter.digest()
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    torch.testing.assert_close(logits(adapted), logits(model), atol=1e-3, rtol=0)


def test_what_is_the_same_gets_no_factors_and_no_target(tmp_path: Path) -> None:
    model = llama()
    base = save(tmp_path, model, "base")
    low_rank(model.model.layers[1].self_attn.q_proj.weight, 2)
    extraction = extract(base, save(tmp_path, model, "tuned"), Cut(r=2))
    assert [layer.module for layer in extraction.layers] == ["model.layers.1.self_attn.q_proj"]
    assert extraction.same == len(load_file(base / "model.safetensors")) - 1
    adapted = PeftModel(
        AutoModelForCausalLM.from_pretrained(base), extraction.adapter.config, adapter=extraction.adapter
    )
    assert list(adapted.base_model.lora_layers) == ["model.layers.1.self_attn.q_proj"]
    with pytest.raises(AdapterError, match=r"no matrix .* differs .* tensors are the same"):
        extract(base, base, Cut(r=2))


def test_norms_and_biases_are_reported_or_saved(tmp_path: Path) -> None:
    model = llama()
    base = save(tmp_path, model, "base")
    low_rank(model.model.layers[0].self_attn.q_proj.weight, 2)
    model.model.layers[0].self_attn.q_proj.bias.data += 0.3
    model.model.layers[1].self_attn.k_proj.bias.data -= 0.2
    model.model.norm.weight.data *= 1.1
    tuned = save(tmp_path, model, "tuned")
    without = extract(base, tuned, Cut(r=2))
    assert {left.name for left in without.left} == {
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.self_attn.k_proj.bias",
        "model.norm.weight",
    }
    assert not without.saved
    extraction = extract(base, tuned, Cut(r=2), save_rest=True)
    assert not extraction.left
    config = extraction.adapter.config
    assert config.bias == "lora_only"
    assert config.modules_to_save == ["model.layers.1.self_attn.k_proj", "model.norm"]
    write_adapter(extraction.adapter, tmp_path / "adapter")
    for load in (PeftModel, pytest.importorskip("peft").PeftModel):
        adapted = load.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
        ).eval()
        torch.testing.assert_close(logits(adapted), logits(model), atol=1e-5, rtol=0)


def test_a_raw_parameter_beside_adapted_modules_is_refused_by_name(tmp_path: Path) -> None:
    for name, scale in (("base", 1.0), ("tuned", 2.0)):
        (tmp_path / name).mkdir()
        tensors = {"mix.proj.weight": torch.eye(4) * scale, "mix.A_log": torch.ones(4) * scale}
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert [left.name for left in extract(tmp_path / "base", tmp_path / "tuned", Cut(r=4)).left] == [
        "mix.A_log"
    ]
    with pytest.raises(
        AdapterError, match=r"mix\.A_log differs and cannot be saved in full, for 'mix\.proj'"
    ):
        extract(tmp_path / "base", tmp_path / "tuned", Cut(r=4), save_rest=True)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (
            nn.Conv1d(4, 6, 3),
            nn.Conv2d(4, 6, (3, 2)),
            nn.Conv3d(2, 4, (1, 1, 3)),
        )


def test_convolutions_are_matrices_with_a_flattened_kernel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Convolutions()
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        save_file(model.state_dict(), tmp_path / name / "model.safetensors")
        for layer in model.children():
            low_rank(layer.weight, 2)
    extraction = extract(tmp_path / "base", tmp_path / "tuned", Cut(r=2))
    base, tuned = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "tuned"))
    fresh = Convolutions()
    fresh.load_state_dict(base)
    merged = PeftModel(fresh, extraction.adapter.config, adapter=extraction.adapter).merge_and_unload()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, tuned[name], atol=1e-6, rtol=1e-5)


def test_a_base_that_lacks_the_prefix_and_a_sharded_tuned_model(tmp_path: Path) -> None:
    model = gpt2()
    base = save(tmp_path, model.transformer, "base")
    for parameter in matrices(model).values():
        low_rank(parameter, 2)
    model.save_pretrained(tmp_path / "tuned", max_shard_size="20kB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 2
    extraction = extract(base, tmp_path / "tuned", Cut(r=2))
    assert all(layer.module.startswith("transformer.h.") for layer in extraction.layers)
    assert {layer.kind for layer in extraction.layers} == {"conv1d"}
    adapted = PeftModel(
        GPT2LMHeadModel.from_pretrained(base), extraction.adapter.config, adapter=extraction.adapter
    )
    torch.testing.assert_close(logits(adapted), logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_are_subtracted_in_single(tmp_path: Path, half: torch.dtype) -> None:
    model = llama().to(half)
    base = save(tmp_path, model, "base")
    weight = model.model.layers[0].mlp.down_proj.weight
    old = weight.detach().clone()
    low_rank(weight, 4)
    (layer,) = extract(base, save(tmp_path, model, "tuned"), Cut(energy=0.9)).layers
    delta = weight.detach().float() - old.float()
    assert layer.norm == pytest.approx(float(delta.norm()), rel=1e-5)
    s = torch.linalg.svdvals(delta)
    assert layer.error == pytest.approx(float(s[layer.rank :].norm() / s.norm()), abs=1e-5)


def test_other_models_are_refused(tmp_path: Path) -> None:
    base = save(tmp_path, llama(), "llama")
    other = save(tmp_path, gpt2(), "gpt2")
    with pytest.raises(AdapterError, match="no tensor name in common"):
        extract(base, other, Cut(r=2))
    model = llama()
    model.resize_token_embeddings(44)
    with pytest.raises(AdapterError, match=r"is \[40, 24\] in the base and \[44, 24\].*vocabulary resized"):
        extract(base, save(tmp_path, model, "resized"), Cut(r=2))


def test_broken_checkpoints_are_named(tmp_path: Path) -> None:
    base = save(tmp_path, llama(), "base")

    def refused(fault: str) -> None:
        with pytest.raises(ModelError, match=fault) as caught:
            extract(base, tmp_path / "copy", Cut(r=2))
        assert "\n" not in str(caught.value)

    (tmp_path / "copy").mkdir()
    refused(r"no \*\.safetensors there\.$")
    (tmp_path / "copy" / "pytorch_model.bin").touch()
    refused("Its weights are a pickle")
    weights = (base / "model.safetensors").read_bytes()
    for data, fault in (
        (weights[:100], "header is cut off"),
        (weights[:-8], "data is cut off"),
        (b"", "truncated"),
    ):
        (tmp_path / "copy" / "model.safetensors").write_bytes(data)
        refused(fault)
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (tmp_path / "copy" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("model-00001-of-00002.safetensors is missing")


MEASURE = """
import sys, torch
from pathlib import Path
from loralab.core.svd import Cut
from loralab.tools.extract import extract

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

torch.set_num_threads(1)
folder = Path(sys.argv[1])
extract(folder / "small_base", folder / "small_tuned", Cut(r=8))
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
extract(folder / "base", folder / "tuned", Cut(r=8))
print(status("VmHWM") - before)
"""


def test_memory_stays_under_twice_the_largest_matrix(tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process's memory is read from /proc, which is not there")
    size = 3000
    for name in ("base", "tuned", "small_base", "small_tuned"):
        (tmp_path / name).mkdir()
        n = 200 if "small" in name else size
        torch.manual_seed(len(name))
        tensors = {f"layers.{i}.q_proj.weight": torch.randn(n, n) for i in range(2)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    peak = int(result.stdout)
    assert size * size * 4 < peak < 2 * size * size * 4
    shutil.rmtree(tmp_path)


def test_a_real_fine_tune(assets: Path, stories_model_dir: Path, tmp_path: Path) -> None:
    """A merged adapter of rank 8 is a full fine-tune whose answer is known."""
    folder = assets / "adapters" / "peft_ref_stories260K_e2e_r8"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(stories_model_dir), folder)
    tuned = save(tmp_path, model.merge_and_unload(), "tuned")
    extraction: Extraction = extract(stories_model_dir, tuned, Cut(r=8))
    golden = load_file(folder / "golden.safetensors")
    base = AutoModelForCausalLM.from_pretrained(stories_model_dir)
    again = PeftModel(base, extraction.adapter.config, adapter=extraction.adapter).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(golden["input_ids"]).logits, golden["logits"], atol=1e-4, rtol=0)
    assert extraction.adapter.config.target_modules == read_adapter(folder).config.target_modules
