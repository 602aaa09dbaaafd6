"""What must hold over every kind of quantized linear layer, most of it to the bit."""

import copy
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loralab.core.config import LoraConfig
from loralab.core.layers import REGISTRY, Activation, LoraLayer, wrap
from loralab.core.model import LoraModel
from loralab.errors import AdapterError, TargetError

NEEDS = "needs {}: pip install 'loralab[quant]'"
IN, OUT = 64, 96


class Net(nn.Module):
    """A model of one layer, at the path "layer"."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@dataclass(frozen=True)
class Kind:
    """How to make a layer, the same every time."""

    entry: str
    make: Callable[[nn.Linear], nn.Module]
    dtype: torch.dtype = torch.float32
    rounds_input: bool = False
    """The library quantizes the input too, so the product is exact to a few percent only."""

    def net(self) -> Net:
        torch.manual_seed(0)
        return Net(self.make(nn.Linear(IN, OUT).to(self.dtype)))

    def x(self, *sizes: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(*(sizes or (4, 5)), IN, generator=generator).to(self.dtype)

    @property
    def tolerance(self) -> float:
        if self.rounds_input:
            return 0.03
        return 0.02 if self.dtype == torch.bfloat16 else 1e-5


def four_bit(**settings: Any) -> Callable[[nn.Linear], nn.Module]:
    def make(linear: nn.Linear) -> nn.Module:
        bnb = pytest.importorskip("bitsandbytes", reason=NEEDS.format("bitsandbytes"))
        layer = bnb.nn.Linear4bit(IN, OUT, compute_dtype=linear.weight.dtype, **settings)
        layer.weight.data, layer.bias.data = linear.weight.data, linear.bias.data
        return layer.to("cpu")

    return make


def eight_bit(threshold: float) -> Callable[[nn.Linear], nn.Module]:
    def make(linear: nn.Linear) -> nn.Module:
        bnb = pytest.importorskip("bitsandbytes", reason=NEEDS.format("bitsandbytes"))
        layer = bnb.nn.Linear8bitLt(IN, OUT, has_fp16_weights=False, threshold=threshold)
        layer.weight.data, layer.bias.data = linear.weight.data, linear.bias.data
        return layer.to("cpu")

    return make


def torchao(config: str, **settings: Any) -> Callable[[nn.Linear], nn.Module]:
    def make(linear: nn.Linear) -> nn.Module:
        pytest.importorskip("torchao", reason=NEEDS.format("torchao"))
        from torchao import quantization

        if "group" in settings:
            blocks = {"granularity": quantization.PerGroup(settings["group"])}
            if "Dynamic" in config:
                blocks = {"weight_granularity": blocks["granularity"]}
            settings_now = {"weight_dtype": torch.int4, **blocks}
        else:
            settings_now = settings
        net = nn.Sequential(linear.requires_grad_(False))
        quantization.quantize_(net, getattr(quantization, config)(**settings_now))
        return net[0]

    return make


KINDS = {
    "nf4": Kind("bnb_4bit", four_bit(quant_type="nf4")),
    "fp4-plain-scales": Kind("bnb_4bit", four_bit(quant_type="fp4", compress_statistics=False)),
    "nf4-bf16-storage": Kind(
        "bnb_4bit", four_bit(quant_type="nf4", quant_storage=torch.bfloat16), torch.bfloat16
    ),
    "int8": Kind("bnb_8bit", eight_bit(0.0)),
    "int8-outliers": Kind("bnb_8bit", eight_bit(2.0)),
    "ao-int8": Kind("torchao", torchao("Int8WeightOnlyConfig")),
    "ao-int8-bf16": Kind("torchao", torchao("Int8WeightOnlyConfig"), torch.bfloat16),
    "ao-int8-dynamic": Kind("torchao", torchao("Int8DynamicActivationInt8WeightConfig"), rounds_input=True),
    "ao-int4": Kind("torchao", torchao("IntxWeightOnlyConfig", group=32)),
    "ao-int4-dynamic": Kind(
        "torchao", torchao("Int8DynamicActivationIntxWeightConfig", group=32), rounds_input=True
    ),
    "ao-float8": Kind("torchao", torchao("Float8WeightOnlyConfig")),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def quant(request: pytest.FixtureRequest) -> Any:
    return request.param


def attached(net: nn.Module, *names: str, init: Any = False, **settings: Any) -> LoraModel:
    """The net in training mode with adapters over its layer; the first one is active."""
    config = LoraConfig(r=4, target_modules=["layer"], init_lora_weights=init, **settings)
    first, *rest = names or ("default",)
    torch.manual_seed(7)
    model = LoraModel(net, config, first)
    for name in rest:
        model.attach(name, config)
    return model.train()


def layer_of(model: LoraModel) -> Any:
    return model.lora_layers["layer"]


def bits(net: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the net and every part of its quantized ones, copied."""
    found: dict[str, Tensor] = {}
    for key, value in net.state_dict().items():
        parts = {part: getattr(value, part, None) for part in ("qdata", "scale", "zero_point")}
        if parts["qdata"] is None:
            parts = {"": value}
        for part, tensor in parts.items():
            if tensor is not None:
                found[f"{key}.{part}"] = tensor.detach().clone()
    return found


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[k].reshape(-1).view(torch.uint8), second[k].reshape(-1).view(torch.uint8))
        for k in first
    )


def close(first: Tensor, second: Tensor, tolerance: float) -> None:
    assert first.dtype == second.dtype
    assert (first - second).abs().max() <= tolerance * second.abs().max()


def product(quant: Kind, weight: Tensor, layer: LoraLayer, x: Tensor) -> Tensor:
    """What a plain linear layer of that weight computes."""
    assert layer.bias is not None
    return F.linear(x, weight.to(x.dtype), layer.bias.detach().to(x.dtype))


def test_it_belongs_to_one_kind_of_layer(quant: Kind) -> None:
    module = quant.net().layer
    assert [name for name in REGISTRY.names if REGISTRY.get(name).matches(module)] == [quant.entry]
    layer = wrap(module, "some.path", Activation())
    assert (layer.in_features, layer.out_features) == (IN, OUT)
    assert repr(layer).startswith(("lora.Linear4bit(", "lora.Linear8bitLt(", "lora.TorchaoLoraLinear("))


def test_a_fresh_adapter_changes_no_bit(quant: Kind) -> None:
    net, x = quant.net().train(), quant.x()
    before, output = bits(net), net(x)
    model = attached(net, init=True)
    assert torch.equal(model(x), output)
    assert same_bits(bits(model.unload()), before)
    factors = attached(quant.net(), init=True).adapter("default").tensors.values()
    assert {t.dtype for t in factors} == {torch.float32}


def test_evaluation_is_the_base_and_the_term(quant: Kind) -> None:
    model, x = attached(quant.net()).eval(), quant.x()
    with torch.no_grad():
        with_adapter = model(x)
        model.disable_adapter_layers()
        delta = layer_of(model).delta("default").to(x.dtype)
        close(with_adapter, model(x) + x @ delta.t(), 1e-5 if x.dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("use_dora", [False, True])
def test_gradients_are_those_over_the_numbers(quant: Kind, use_dora: bool) -> None:
    model, x = attached(quant.net(), use_dora=use_dora), quant.x().requires_grad_()
    layer = layer_of(model)
    output = model(x)
    factors = layer.tensors("default").values()
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    found = torch.autograd.grad(output, (x, *factors), upstream)

    plain = nn.Linear(IN, OUT, dtype=quant.dtype)
    plain.load_state_dict({"weight": layer.dense_weight(), "bias": layer.bias})
    other = attached(Net(plain), use_dora=use_dora)
    wanted = torch.autograd.grad(other(x), (x, *layer_of(other).tensors("default").values()), upstream)
    for one, two in zip(found, wanted, strict=True):
        close(one, two, quant.tolerance)


def test_the_base_is_never_trained(quant: Kind) -> None:
    model, x = attached(quant.net(), init=True), quant.x()
    before = bits(layer_of(model).base_layer)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-2)
    losses = []
    for _ in range(5):
        loss = (model(x).float() - 1).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    assert same_bits(bits(layer_of(model).base_layer), before)


@pytest.mark.parametrize("use_dora", [False, True])
def test_merged_forward_is_that_of_the_merged_numbers(quant: Kind, use_dora: bool) -> None:
    model, x = attached(quant.net(), use_dora=use_dora), quant.x()
    layer = layer_of(model)
    wanted = layer.dense_weight().float() + layer.delta("default")
    model.merge_adapter()
    merged = layer.dense(layer.weight)
    assert type(layer.weight) is type(layer.original_weight)
    assert layer.weight.device == layer.original_weight.device
    assert not torch.equal(merged, layer.dense_weight())
    with torch.no_grad():
        close(model(x), product(quant, merged, layer, x), quant.tolerance)
    # A step of the coarsest grid here, 4 bits with scales for 64 numbers, is a sixth of the largest number.
    assert (merged.float() - wanted).abs().max() <= 0.2 * wanted.abs().max()


def test_the_report_says_what_the_merge_lost(quant: Kind) -> None:
    model = attached(quant.net())
    layer = layer_of(model)
    report = model.merge_adapter()
    applied = layer.dense(layer.weight).float() - layer.dense_weight().float()
    delta = layer.delta("default")
    assert report.error == pytest.approx(((applied - delta).norm() / delta.norm()).item(), rel=1e-3)
    assert 0.001 < report.error < 1.5


def test_fifty_merges_in_any_order_change_no_bit(quant: Kind) -> None:
    model, x = attached(quant.net(), "a", "b", "c"), quant.x()
    original, first = bits(layer_of(model).base_layer), model(x).detach()
    orders = [*itertools.permutations("abc"), *itertools.permutations("ab"), ("c",), ()]
    seen: dict[frozenset[str], dict[str, Tensor]] = {}
    chance = random.Random(0)
    for _ in range(50):
        names = chance.choice(orders)
        model.swap_adapter(names)
        now = bits(layer_of(model).base_layer)
        assert same_bits(seen.setdefault(frozenset(names), now), now)
    model.unmerge_adapter()
    assert same_bits(bits(layer_of(model).base_layer), original)
    assert torch.equal(model(x), first)


def test_a_merge_that_fails_changes_nothing(quant: Kind) -> None:
    model, x = attached(quant.net(), "good", "bad"), quant.x()
    with torch.no_grad():
        layer_of(model).tensors("bad")["lora_B.weight"][3, 1] = torch.nan
    original = bits(layer_of(model).base_layer)
    with pytest.raises(AdapterError, match="not finite; nothing was changed"):
        model.merge_adapter(["good", "bad"])
    assert model.merged_adapters == []
    assert same_bits(bits(layer_of(model).base_layer), original)
    assert model(x).isfinite().all()


def test_hiding_what_is_merged_shows_the_base(quant: Kind) -> None:
    model, x = attached(quant.net()), quant.x()
    with torch.no_grad():
        model.disable_adapter_layers()
        base = model(x)
        model.enable_adapter_layers()
        model.merge_adapter()
        merged = model(x)
        model.disable_adapter_layers()
        assert torch.equal(model(x), base)
        model.enable_adapter_layers()
        assert torch.equal(model(x), merged)


@pytest.mark.parametrize("rounding", ["stochastic", "float32"])
def test_another_rounding_is_refused(quant: Kind, rounding: Any) -> None:
    model = attached(quant.net())
    with pytest.raises(AdapterError, match=f"rounding='{rounding}': a Linear"):
        model.merge_adapter(rounding=rounding)
    assert model.merged_adapters == []


@pytest.mark.parametrize("init", [True, "pissa", "pissa_niter_4", "olora", "orthogonal"])
def test_attach_again_gives_the_same(quant: Kind, init: Any) -> None:
    model, x = attached(quant.net(), init=init), quant.x()
    base = quant.net().train()(x)
    # The residual is rounded again, to a grid of 4 bits at worst.
    close(model(x).detach(), base, 0.2)
    with torch.no_grad():
        for tensor in model.adapter("default").tensors.values():
            tensor.add_(0.01)
    adapter = copy.deepcopy(model.adapter("default"))
    net = quant.net()
    torch.manual_seed(7)  # The randomized SVD of pissa_niter is that of the seed.
    again = LoraModel(net, adapter.config, "other", adapter).train()
    assert torch.equal(again(x), model(x))
    assert same_bits(bits(layer_of(again).base_layer), bits(layer_of(model).base_layer))


def test_a_mixed_batch_is_one_row_at_a_time(quant: Kind) -> None:
    model, x = attached(quant.net(), "a", "b"), quant.x(3, 5)
    model.attach("dora", LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False, use_dora=True))
    names = ["b", "__base__", "dora"]
    with torch.no_grad():
        with model.rows(names):
            mixed = model(x)
        for row, name in enumerate(names):
            with model.rows([name]):
                close(mixed[row : row + 1], model(x[row : row + 1]), quant.tolerance)
    assert not torch.allclose(mixed[0], mixed[1])


def test_what_is_kept_aside_moves_and_copies_with_the_model(quant: Kind) -> None:
    model, x = attached(quant.net(), "a", "b"), quant.x()
    original, output = bits(layer_of(model).base_layer), model(x).detach()
    model.merge_adapter(["a"])
    merged = bits(layer_of(model).base_layer)
    for one in (model.to("cpu"), copy.deepcopy(model)):
        assert same_bits(bits(layer_of(one).base_layer), merged)
        one.unmerge_adapter()
        assert same_bits(bits(layer_of(one).base_layer), original)
        assert torch.equal(one(x), output)


def test_the_state_dict_of_a_merged_layer_is_the_merged_layer(quant: Kind) -> None:
    model, x = attached(quant.net()), quant.x()
    model.merge_adapter()
    output = model(x).detach()
    merged = model.merge_and_unload()
    state = merged.layer.state_dict()
    assert not any("lora" in key for key in state)
    fresh = quant.net().train().layer
    assert not same_bits(bits(fresh), bits(merged.layer))
    if quant.entry == "bnb_4bit":
        import bitsandbytes as bnb

        scales = {key.removeprefix("weight."): v for key, v in state.items() if key.startswith("weight.")}
        weight = bnb.nn.Params4bit.from_prequantized(state["weight"], scales, device="cpu")
        fresh.weight, fresh.bias.data = weight, state["bias"]
    else:
        fresh.load_state_dict(state, assign=quant.entry == "torchao")
    assert torch.equal(fresh(x), output)


@pytest.mark.parametrize("name", ["nf4", "fp4-plain-scales", "nf4-bf16-storage"])
def test_a_base_that_was_used_before_still_trains(name: str) -> None:
    """In evaluation mode bitsandbytes repacks a weight on some CPUs, and then passes no gradient on."""
    net, x = KINDS[name].net().eval(), KINDS[name].x()
    with torch.no_grad():
        before = net(x)
    model = attached(net, init=True).eval()
    close(model(x), before, 0.02)
    x.requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None
    packed = bits(layer_of(model).base_layer)
    with torch.no_grad():
        for module in model.modules():
            module.eval()
        model(x)
    model.merge_adapter()
    model.unmerge_adapter()
    assert same_bits(bits(layer_of(model).base_layer), packed)


def test_what_is_not_quantized_yet_is_quantized_later() -> None:
    """bitsandbytes quantizes when a layer is moved to its device, which may be after the adapter came."""
    bnb = pytest.importorskip("bitsandbytes", reason=NEEDS.format("bitsandbytes"))
    for linear in (bnb.nn.Linear4bit(IN, OUT), bnb.nn.Linear8bitLt(IN, OUT, has_fp16_weights=False)):
        numbers = linear.weight.detach().clone()
        model = attached(Net(linear))
        assert torch.equal(layer_of(model).dense_weight(), numbers)
        model.to("cpu")
        close(layer_of(model).dense_weight(), numbers, 0.2)
        assert not torch.equal(layer_of(model).dense_weight(), numbers)
        assert model(torch.randn(2, IN)).shape == (2, OUT)


def test_a_weight_in_fp16_that_is_quantized_at_each_use() -> None:
    bnb = pytest.importorskip("bitsandbytes", reason=NEEDS.format("bitsandbytes"))
    linear = bnb.nn.Linear8bitLt(IN, OUT, has_fp16_weights=True).to("cpu")
    model, x = attached(Net(linear)), torch.randn(3, IN)
    with torch.no_grad():
        before = model(x)
        model.merge_adapter()
        close(model(x), before, 0.05)
        model.unmerge_adapter()
        assert torch.equal(model(x), before)


def test_a_layer_of_another_library_is_refused_by_its_class() -> None:
    class QuantLinear(nn.Module):
        """As GPTQ's, AWQ's and others' layers look: codes and scales, and no weight."""

        def __init__(self) -> None:
            super().__init__()
            self.qweight = nn.Buffer(torch.zeros(4, 4, dtype=torch.int32))

    config = LoraConfig(target_modules=["layer"])
    with pytest.raises(TargetError, match=r"'layer' is a QuantLinear, which cannot be adapted; .*bnb_4bit"):
        LoraModel(Net(QuantLinear()), config)
