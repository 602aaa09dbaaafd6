"""DoRA and mixed batches: identities that PEFT is no oracle for."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from loralab import LoraConfig, get_peft_model
from loralab.core.model import LoraModel
from loralab.errors import AdapterError

IDS = torch.tensor([[5, 9, 2, 31, 7, 1], [8, 8, 3, 0, 12, 30], [1, 2, 3, 4, 5, 6], [9, 9, 9, 1, 1, 1]])


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def several(**settings: dict[str, Any]) -> Any:
    """A model with one trained adapter for each of the given settings, by name."""
    model = None
    for name, extra in settings.items():
        config = LoraConfig(target_modules="all-linear", **extra)
        if model is None:
            model = get_peft_model(llama(), config, name)
        else:
            model.add_adapter(name, config)
    assert model is not None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.fixture
def mixed() -> Any:
    return several(plain={"r": 4}, dora={"r": 3, "use_dora": True}, wide={"r": 9, "use_rslora": True})


@torch.no_grad()
def test_a_row_of_a_mixed_batch_is_what_it_is_alone(mixed: Any) -> None:
    names = ["wide", "__base__", "dora", "plain"]
    together = mixed(input_ids=IDS, adapter_names=names).logits
    for row, name in enumerate(names):
        if name == "__base__":
            with mixed.disable_adapter():
                alone = mixed(input_ids=IDS[row : row + 1]).logits
        else:
            mixed.set_adapter(name)
            alone = mixed(input_ids=IDS[row : row + 1]).logits
        assert torch.allclose(together[row], alone[0], atol=1e-5)


@torch.no_grad()
def test_a_mixed_batch_generates_what_each_row_generates_alone(mixed: Any) -> None:
    names = ["plain", "dora", "__base__", "wide"]
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 2, "pad_token_id": 0}
    together = mixed.generate(input_ids=IDS, adapter_names=names, **options)
    for row, name in enumerate(names):
        alone = mixed.generate(input_ids=IDS[row : row + 1], adapter_names=[name], **options)
        assert torch.equal(together[row, : alone.shape[1]], alone[0])


def test_a_mixed_batch_trains_each_adapter_on_its_own_rows(mixed: Any) -> None:
    mixed.set_adapter(["plain", "wide"])
    names = ["plain", "plain", "wide", "__base__"]
    mixed(input_ids=IDS, adapter_names=names).logits.square().sum().backward()
    together = {n: p.grad.clone() for n, p in mixed.named_parameters() if p.grad is not None}
    for name, rows in (("plain", [0, 1]), ("wide", [2])):
        mixed.zero_grad()
        mixed.set_adapter(name)
        mixed(input_ids=IDS[rows]).logits.square().sum().backward()
        for key, parameter in mixed.named_parameters():
            if f".{name}." in key:
                assert torch.allclose(parameter.grad, together[key], rtol=1e-3, atol=1e-4), key


def test_a_mixed_batch_refuses_what_it_cannot_do(mixed: Any) -> None:
    with pytest.raises(AdapterError, match=r"no adapter 'plian'.*'plain'"):
        mixed(input_ids=IDS, adapter_names=["plian"] * 4)
    with pytest.raises(AdapterError, match="3 entries for a batch of 4"):
        mixed(input_ids=IDS, adapter_names=["plain"] * 3)
    mixed.merge_adapter(["plain"])
    with pytest.raises(AdapterError, match="unmerge_adapter"):
        mixed(input_ids=IDS, adapter_names=["wide"] * 4)


def test_dora_starts_at_the_base_and_keeps_lengths() -> None:
    base = nn.Linear(12, 7, dtype=torch.float64)
    weight = base.weight.detach().clone()
    model = LoraModel(nn.Sequential(base), LoraConfig(r=2, target_modules=["0"], use_dora=True))
    layer = model.lora_layers["0"]
    assert torch.allclose(layer.delta("default"), torch.zeros_like(weight), atol=1e-12)
    nn.init.normal_(layer.lora_B["default"].weight)
    moved = weight + layer.delta("default")
    assert torch.allclose(moved.norm(dim=1), weight.norm(dim=1), atol=1e-10)
    model.merge_adapter()
    assert torch.allclose(layer.weight.double(), moved, atol=1e-12)


def test_two_dora_adapters_at_once_merge_to_what_they_compute() -> None:
    model = several(one={"r": 2, "use_dora": True}, two={"r": 3, "use_dora": True})
    model.set_adapter(["one", "two"])
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        model.merge_adapter()
        assert torch.allclose(model(input_ids=IDS).logits, before, atol=1e-5)


def test_scale() -> None:
    model = several(one={"r": 2, "lora_alpha": 6})
    layer = next(iter(model.base_model.lora_layers.values()))
    delta = layer.delta("one")
    layer.set_scale("one", 2)
    assert torch.allclose(layer.delta("one"), 2 * delta)
    layer.scale_layer(0.5)
    assert torch.allclose(layer.delta("one"), delta)
    layer.scale_layer(3)
    layer.unscale_layer()
    assert layer.scaling["one"] == 3


def test_status() -> None:
    model = several(one={"r": 2}, two={"r": 3, "use_dora": True})
    status = model.get_model_status()
    assert (status.available_adapters, status.active_adapters) == (["one", "two"], ["one"])
    assert status.requires_grad == {"one": True, "two": False}
    assert status.num_adapter_layers == len(model.get_layer_status()) == 14
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["one"]
    next(iter(model.base_model.lora_layers.values())).train_adapter("one", False)
    assert model.get_model_status().requires_grad["one"] == "irregular"
