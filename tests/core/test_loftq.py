"""``init_lora_weights="loftq"``, and factors for a base that was loaded quantized."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from loralab import LoraConfig, get_peft_model
from loralab.adapters.loftq import replace_lora_weights_loftq
from loralab.core.init_config import LoftQConfig
from loralab.core.inits.loftq import decompose
from loralab.core.quantize import normal_float, quantized
from loralab.errors import (
    ConfigError,
    ModelError,
    TargetError,
)

toy = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("toy.py"))))
net, LINEAR = toy.net, toy.LINEAR


def test_normal_float_has_the_levels_of_qlora() -> None:
    levels = normal_float(4)
    known = {0: -1.0, 1: -0.6961928, 6: -0.0910500, 7: 0.0, 8: 0.0795803, 14: 0.7229568, 15: 1.0}
    assert len(levels) == 16
    assert {place: float(levels[place]) for place in known} == pytest.approx(known, abs=1e-4)
    assert normal_float(2).tolist() == pytest.approx([-1.0, 0.0, float(normal_float(2)[2]), 1.0])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantizing_again_changes_nothing(bits: int) -> None:
    weight = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    once = quantized(weight, bits)
    assert torch.allclose(quantized(once, bits), once, atol=1e-6)
    assert not once[2].any()
    levels = {2: 4, 4: 16, 8: 255}[bits]
    assert len(once[0].unique()) <= levels
    assert (once - weight).norm() < {2: 0.7, 4: 0.12, 8: 0.01}[bits] * weight.norm()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_more_turns_are_never_worse(bits: int) -> None:
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(1))
    lost = [decompose(weight, 6, bits, turns)[1].lost for turns in (1, 2, 5)]
    assert lost == sorted(lost, reverse=True)
    q_OI, low = decompose(weight, 6, bits, 5)
    assert float((weight - q_OI - low.product()).norm()) == pytest.approx(lost[-1], rel=1e-3)
    assert lost[-1] < float((weight - quantized(weight, bits)).norm())
    if bits == 2:
        assert lost[-1] < 0.99 * lost[0]


@pytest.mark.parametrize("layer_kind", ["linear", "gpt2-conv1d", "embedding", "conv1d", "conv2d", "conv3d"])
def test_loftq_makes_up_for_rounding_on_every_kind(layer_kind: str, kinds: dict[str, Any]) -> None:
    base = kinds[layer_kind].net()
    weight = base.layer.weight.detach().clone()
    made = LoraConfig(
        init_lora_weights="loftq",
        target_modules=["layer"],
        r=2,
        lora_alpha=6,
        loftq_config=LoftQConfig(loftq_bits=2, loftq_iter=3),
    )
    layer = get_peft_model(base, made).base_model.lora_layers["layer"]
    rounded = layer.dense_weight()
    assert torch.allclose(quantized(layer.matrix(rounded), 2), layer.matrix(rounded), atol=1e-5)
    assert (rounded + layer.delta("default") - weight).norm() < 0.97 * (
        quantized(layer.matrix(weight), 2) - layer.matrix(weight)
    ).norm()


def test_loftq_refuses_what_has_no_such_rank(kinds: dict[str, Any]) -> None:
    made = LoraConfig(init_lora_weights="loftq", target_modules=["layer"], r=8)
    with pytest.raises(ConfigError, match=r"'layer': .*The rank must be at most the smaller side"):
        get_peft_model(kinds["linear"].net(), made)
    with pytest.raises(TargetError, match="groups=2"):
        get_peft_model(kinds["conv2d-groups"].net(), made)


def test_replacing_needs_a_quantized_layer() -> None:
    model = get_peft_model(net(), LoraConfig(target_modules=LINEAR))
    with pytest.raises(ConfigError, match="'default' lies on no quantized layer"):
        replace_lora_weights_loftq(model)


@pytest.fixture
def four_bits(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A model in 4 bits and a file of its full weights."""
    bnb = pytest.importorskip("bitsandbytes")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    full = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64, bias=False))
    save_file(full.state_dict(), tmp_path / "model.safetensors")
    small = nn.Sequential()
    for linear in full:
        bias = linear.bias is not None
        four = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, bias, torch.float32, quant_type="nf4"
        )
        four.load_state_dict(linear.state_dict())
        small.append(four)
    return small.to("cpu"), tmp_path


def test_factors_make_up_for_what_a_loaded_base_has_lost(four_bits: tuple[nn.Module, Path]) -> None:
    base, folder = four_bits
    weights = load_file(folder / "model.safetensors")
    model = get_peft_model(base, LoraConfig(target_modules=["0", "1"], r=8, lora_alpha=24))
    layers = model.base_model.lora_layers
    before = {path: (weights[f"{path}.weight"] - x.dense_weight()).norm() for path, x in layers.items()}
    seen: list[str] = []

    def keep_the_first(adapted: Any, path: str) -> bool:
        assert adapted is model
        seen.append(path)
        return path == "0"

    replace_lora_weights_loftq(model, folder, callback=keep_the_first)
    assert seen == ["0", "1"]
    assert not layers["1"].factors("default")[1].any()
    replace_lora_weights_loftq(model, str(folder / "model.safetensors"))
    for path, layer in layers.items():
        lost = weights[f"{path}.weight"] - layer.dense_weight()
        assert (lost - layer.delta("default")).norm() < 0.8 * before[path]
        best = torch.linalg.svdvals(lost)[8:].norm()
        assert torch.allclose((lost - layer.delta("default")).norm(), best, rtol=1e-3)


def test_wrong_files_are_refused(four_bits: tuple[nn.Module, Path], tmp_path: Path) -> None:
    base, folder = four_bits
    made = LoraConfig(target_modules=["0", "1"], r=8, init_lora_weights="loftq")
    with pytest.raises(ConfigError, match="'0' is quantized already, so 'loftq' cannot see"):
        get_peft_model(base, made)
    model = get_peft_model(base, LoraConfig(target_modules=["0", "1"], r=8))
    with pytest.raises(ConfigError, match="does not say where it comes from; pass model_path"):
        replace_lora_weights_loftq(model)
    with pytest.raises(ModelError, match="neither a folder nor in the hub's cache"):
        replace_lora_weights_loftq(model, "no/such")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        replace_lora_weights_loftq(model, empty)
    index = {"weight_map": {"0.weight": "model-1.safetensors", "1.weight": "model-2.safetensors"}}
    (empty / "model.safetensors.index.json").write_text(json.dumps(index))
    (empty / "model-1.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"the files hold no '1\.weight'"):
        replace_lora_weights_loftq(model, empty)
    (empty / "model-2.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        replace_lora_weights_loftq(model, empty)
    (empty / "model-2.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    replace_lora_weights_loftq(model, empty)
