"""What must hold for every kind of layer in every precision, most of it to the bit."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralab.core.config import LoraConfig
from loralab.core.model import LoraModel
from loralab.errors import AdapterError

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def attached(net: nn.Module, *names: str, init: Any = False, **settings: Any) -> LoraModel:
    """The net with adapters over its layer, random unless told otherwise; the first one is active."""
    config = LoraConfig(**{"r": 4, "init_lora_weights": init, **net.kind.targets, **settings})
    first, *rest = names or ("default",)
    model = LoraModel(net, config, first)
    for number, name in enumerate(rest):
        torch.manual_seed(100 + number)
        model.attach(name, config)
    return model.eval()


def frozen(net: nn.Module) -> nn.Module:
    """The net as a base is under adapters: torch multiplies in another way where a gradient may be wanted."""
    return net.requires_grad_(False)


def outputs_close(first: Tensor, second: Tensor) -> None:
    scale = second.abs().max().item()
    assert first.dtype == second.dtype
    assert (first - second).abs().max().item() <= TOLERANCE[second.dtype] * scale


def bits_of(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in net.state_dict().items()}


def weights_of(model: LoraModel) -> list[Tensor]:
    """The adapted weights as they are now."""
    layers = model.lora_layers.values()
    return [getattr(layer.holder, layer.weight_name).detach().clone() for layer in layers]


def all_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key].view(torch.uint8), second[key].view(torch.uint8)) for key in first
    )


@torch.no_grad()
@pytest.mark.parametrize("init", [True, "gaussian"])
def test_a_fresh_adapter_changes_no_bit(kind: Any, dtype: torch.dtype, init: Any) -> None:
    net, x = kind.net(dtype), kind.x(dtype)
    before = frozen(net)(x)
    assert torch.equal(attached(net, init=init)(x), before)


def test_a_random_adapter_changes_the_output(kind: Any, dtype: torch.dtype) -> None:
    net, x = kind.net(dtype), kind.x(dtype)
    before = net(x)
    assert (attached(net)(x) - before).abs().max() > 0.01 * before.abs().max()


def test_factors_are_never_of_less_than_fp32(kind: Any, dtype: torch.dtype) -> None:
    factors = attached(kind.net(dtype)).adapter("default").tensors.values()
    assert {t.dtype for t in factors} == {torch.float64 if dtype == torch.float64 else torch.float32}


def test_forward_is_merged_forward(kind: Any, dtype: torch.dtype) -> None:
    model, x = attached(kind.net(dtype)), kind.x(dtype)
    unmerged, before = model(x), weights_of(model)
    model.merge_adapter()
    outputs_close(model(x), unmerged)
    assert not any(torch.equal(*pair) for pair in zip(weights_of(model), before, strict=True))


def test_several_adapters_at_once_add_up(kind: Any, dtype: torch.dtype) -> None:
    x = kind.x(dtype)
    if not kind.linear:
        model = attached(kind.net(dtype), "a", "b", "c")
        model.set_adapter(["c", "a", "b"])
        together = model(x)
        for layer in model.lora_layers.values():
            total = layer.dense_weight() + sum(layer.delta(name) for name in "abc")
            with torch.no_grad():
                layer.original_weight.copy_(total)
        model.disable_adapter_layers()
        outputs_close(together, model(x))
        return
    base = kind.net(dtype)(x)
    model = attached(kind.net(dtype), "a", "b", "c")
    deltas = []
    for name in ("a", "b", "c"):
        model.set_adapter(name)
        deltas.append(model(x).double() - base.double())
    model.set_adapter(["c", "a", "b"])
    outputs_close(model(x), (base.double() + sum(deltas)).to(dtype))


def test_unmerging_gives_the_bits_back_after_50_cycles(kind: Any, dtype: torch.dtype) -> None:
    model = attached(kind.net(dtype), "a", "b")
    before = bits_of(model)
    originals = [layer.original_weight for layer in model.lora_layers.values()]
    for cycle in range(50):
        model.merge_adapter(["a"] if cycle % 2 else ["b", "a"])
        model.unmerge_adapter()
    assert same_bits(bits_of(model), before)
    for layer, weight in zip(model.lora_layers.values(), originals, strict=True):
        assert getattr(layer.holder, layer.weight_name) is weight


def test_the_order_of_merging_does_not_matter_to_the_bit(kind: Any, dtype: torch.dtype) -> None:
    results = []
    for order in itertools.permutations("abc"):
        model = attached(kind.net(dtype), "a", "b", "c")
        for name in order:
            model.merge_adapter([name])
        results.append(weights_of(model))
    assert all(all_equal(result, results[0]) for result in results)
    assert sorted(model.merged_adapters) == ["a", "b", "c"]


def test_a_merged_weight_is_the_sum_rounded_once(kind: Any, dtype: torch.dtype) -> None:
    model = attached(kind.net(dtype), "a")
    layers = model.lora_layers.values()
    sums = [layer.dense_weight().double() + layer.delta("a").double() for layer in layers]
    model.merge_adapter()
    for merged, exact in zip(weights_of(model), sums, strict=True):
        rounded = exact.to(dtype).double()
        step = torch.finfo(dtype).eps * exact.abs().max()
        assert (merged.double() - rounded).abs().max() <= step
        assert (merged.double() == rounded).double().mean() >= (0.6 if dtype.itemsize >= 4 else 0.99)


def test_swapping_there_and_back_gives_the_same_bits(kind: Any, dtype: torch.dtype) -> None:
    model = attached(kind.net(dtype), "a", "b")
    model.swap_adapter("a")
    first = weights_of(model)
    model.swap_adapter("b")
    assert not all_equal(weights_of(model), first)
    assert model.merged_adapters == ["b"]
    model.swap_adapter("a")
    assert all_equal(weights_of(model), first)


def test_merging_again_changes_nothing(kind: Any) -> None:
    model = attached(kind.net(), "a")
    model.merge_adapter(["a"])
    once = weights_of(model)
    model.merge_adapter(["a"])
    assert all_equal(weights_of(model), once)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_merge_that_fails_leaves_everything_as_it_was(kind: Any, dtype: torch.dtype, bad: float) -> None:
    net, x = kind.net(dtype), kind.x(dtype)
    model = attached(net, "good", "bad")
    good = model(x)
    with torch.no_grad():
        [*model.lora_layers.values()][-1].factors("bad")[1].view(-1)[0] = bad
    before = bits_of(model)
    with pytest.raises(AdapterError, match="bad gives weights that are not finite"):
        model.merge_adapter(["bad"])
    assert same_bits(bits_of(model), before)
    assert model.merged_adapters == []
    assert torch.equal(model(x), good)
    model.merge_adapter(["good"])
    merged = weights_of(model)
    with pytest.raises(AdapterError, match="bad, good"):
        model.merge_adapter(["bad"])
    assert all_equal(weights_of(model), merged)
    assert model.merged_adapters == ["good"]
    outputs_close(model(x), good)


@torch.no_grad()
@pytest.mark.parametrize("merged", [False, True])
def test_disabled_is_the_base_to_the_bit(kind: Any, dtype: torch.dtype, merged: bool) -> None:
    net, x = kind.net(dtype), kind.x(dtype)
    base = frozen(net)(x)
    model = attached(net)
    if merged:
        model.merge_adapter()
    before, state = model(x), bits_of(model)
    model.disable_adapter_layers()
    assert torch.equal(model(x), base)
    model.enable_adapter_layers()
    assert torch.equal(model(x), before)
    assert same_bits(bits_of(model), state)
    assert model.merged_adapters == (["default"] if merged else [])


@torch.no_grad()
def test_a_merge_made_while_disabled_shows_when_enabled(kind: Any) -> None:
    net, x = kind.net(), kind.x()
    base = frozen(net)(x)
    model = attached(net)
    expected = model(x)
    model.disable_adapter_layers()
    model.merge_adapter()
    assert torch.equal(model(x), base)
    model.enable_adapter_layers()
    outputs_close(model(x), expected)


def test_unload_gives_the_original_back(kind: Any, dtype: torch.dtype) -> None:
    net = kind.net(dtype)
    layer, before = net.layer, bits_of(net)
    model = attached(net, "a", "b")
    model.merge_adapter(["b", "a"])
    assert model.unload() is net
    assert net.layer is layer
    assert same_bits(bits_of(net), before)


def test_merge_and_unload_is_a_plain_model_with_the_same_output(kind: Any, dtype: torch.dtype) -> None:
    net, x = kind.net(dtype), kind.x(dtype)
    layer = net.layer
    model = attached(net, "a", "b")
    model.set_adapter(["a", "b"])
    expected = model(x)
    plain = model.merge_and_unload()
    assert plain is net
    assert net.layer is layer
    assert list(net.state_dict()) == list(kind.net().state_dict())
    outputs_close(net(x), expected)


def test_merged_and_active_adapters_run_together(kind: Any) -> None:
    x = kind.x()
    model = attached(kind.net(), "a", "b")
    model.set_adapter(["a", "b"])
    both = model(x)
    model.merge_adapter(["a"])
    outputs_close(model(x), both)


def test_gradients_reach_the_factors_and_nothing_else(kind: Any, dtype: torch.dtype) -> None:
    net, x = kind.net(dtype), kind.x(dtype)
    model = attached(net).train()
    model(x).float().square().sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all((grad is not None) == ("lora_" in name) for name, grad in grads.items())
    assert all(torch.isfinite(grad).all() and grad.any() for grad in grads.values() if grad is not None)
