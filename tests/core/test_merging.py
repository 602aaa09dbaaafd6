"""What a merge does to the numbers of a weight, and that nothing of it stays behind."""

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralab.core.merge import MergeReport, round_randomly
from loralab.core.model import LoraModel
from loralab.errors import AdapterError, ConfigError

from .conftest import KINDS
from .models import close, config, llama, logits
from .test_identities import attached, outputs_close, weights_of

LOW = [torch.bfloat16, torch.float16]
low_precision = pytest.mark.parametrize("low", LOW, ids=["bfloat16", "float16"])


def neighbours(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers of `dtype` at or below, and at or above, each value; in float64."""
    near = values.to(dtype)
    lower = torch.nextafter(near, torch.full_like(near, -torch.inf))
    upper = torch.nextafter(near, torch.full_like(near, torch.inf))
    below = torch.where(near.double() <= values.double(), near, lower)
    above = torch.where(near.double() >= values.double(), near, upper)
    return below.double(), above.double()


def every_size(dtype: torch.dtype) -> Tensor:
    """Numbers of every exponent that `dtype` has, subnormal ones too, of both signs, and 0."""
    limits = torch.finfo(dtype)
    exponents = torch.arange(-133.0, 127.0, dtype=torch.float64)
    sizes = 2.0**exponents
    values = torch.cat([sizes * part for part in (1.0, 1.0001, 1.37, 1.5, 1.99999)])
    values = values[(values < limits.max) & (values > limits.smallest_normal / 2**12)]
    return torch.cat([values, -values, torch.zeros(1, dtype=torch.float64)]).float()


@low_precision
def test_random_rounding_takes_a_neighbour(low: torch.dtype) -> None:
    torch.manual_seed(0)
    values = every_size(low)
    below, above = neighbours(values, low)
    assert (values.abs() < torch.finfo(low).smallest_normal).sum() > 20
    seen = torch.stack([round_randomly(values, low) for _ in range(64)]).double()
    assert ((seen == below) | (seen == above)).all()
    exact = below == above
    assert exact.sum() > 20
    # Half-way between, both turn up.
    middle = (values.double() - below) / (above - below)
    halves = (middle > 0.3) & (middle < 0.7)
    assert halves.sum() > 20
    assert (seen[:, halves] == below[halves]).any(0).all()
    assert (seen[:, halves] == above[halves]).any(0).all()


@low_precision
def test_random_rounding_keeps_the_mean(low: torch.dtype) -> None:
    torch.manual_seed(0)
    draws = 4000
    tiny = 3.3 * torch.finfo(low).smallest_normal * torch.finfo(low).eps
    for value in (1.001, -0.3337, 257.3, -1e-3, tiny, -tiny / 7):
        values = torch.full((draws,), value)
        below, above = (side[0] for side in neighbours(values, low))
        chance = float((value - below) / (above - below))
        assert 0.01 < chance < 0.99
        ups = float((round_randomly(values, low).double() == above).double().mean())
        assert abs(ups - chance) < 5 * (chance * (1 - chance) / draws) ** 0.5


def test_what_is_not_finite_stays_so() -> None:
    values = torch.tensor([torch.inf, -torch.inf, torch.nan])
    for low in LOW:
        rounded = round_randomly(values, low)
        assert rounded[0] == torch.inf
        assert rounded[1] == -torch.inf
        assert rounded[2].isnan()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "float32"])
@pytest.mark.parametrize("variant", [{}, {"use_dora": True}], ids=["plain", "dora"])
def test_the_report_says_what_rounding_changed(
    rounding: Any, variant: dict[str, Any], dtype: torch.dtype
) -> None:
    for name in ("linear", "gpt2-conv1d", "embedding", "conv2d", "conv2d-groups"):
        model = attached(KINDS[name].net(dtype), **variant)
        layer = model.lora_layers["layer"]
        delta, original = layer.delta("default").double(), layer.dense_weight().double()
        found = model.merge_adapter(rounding=rounding)
        wanted = delta.norm().item()
        missed = (layer.dense(layer.weight).double() - original - delta).norm().item()
        assert found.layers["layer"].wanted == pytest.approx(wanted, rel=1e-4)
        if dtype.itemsize >= 4:
            assert found.error < 1e-6
        elif rounding == "float32":
            assert layer.weight.dtype == torch.float32
            assert found.error < 1e-6
        else:
            assert found.layers["layer"].missed == pytest.approx(missed, rel=1e-3)
            assert found.error == pytest.approx(missed / wanted, rel=1e-3)
            assert 1e-5 < found.error < 0.1


def test_a_delta_below_the_step_of_bf16_is_lost_or_kept_on_the_average() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 256, bias=False)).bfloat16()
    model = LoraModel(net, config("0"))
    layer = model.lora_layers["0"]
    with torch.no_grad():
        for factor in layer.factors("default"):
            factor.mul_(0.02)
    delta, before = layer.delta("default"), layer.dense_weight().float()
    lost = model.merge_adapter()
    assert lost.error > 0.5
    model.unmerge_adapter()
    kept = model.merge_adapter(rounding="stochastic")
    assert kept.error > lost.error  # each number is worse,
    applied = layer.weight.float() - before
    share = float((applied * delta).sum() / delta.square().sum())
    assert share == pytest.approx(1, abs=0.3)  # their mean is right
    model.unmerge_adapter()
    assert model.merge_adapter(rounding="float32").error < 1e-5


def test_reports_say_where_and_how_much() -> None:
    model = LoraModel(llama().bfloat16(), config("q_proj", "up_proj"))
    report = model.merge_adapter()
    assert len(report.layers) == 4
    assert report.layers[report.worst].error == max(layer.error for layer in report.layers.values())
    total = sum(layer.missed**2 for layer in report.layers.values())
    assert report.error**2 == pytest.approx(total / sum(layer.wanted**2 for layer in report.layers.values()))
    assert "4 modules" in str(report)
    assert report.worst in str(report)
    assert str(MergeReport({})) == "nothing is merged"
    assert model.swap_adapter([]).layers == {}


@pytest.mark.parametrize("low", LOW, ids=["bfloat16", "float16"])
def test_sums_in_fp32_run_over_a_base_of_less(kind: Any, low: torch.dtype) -> None:
    net, x = kind.net(low), kind.x(low)
    model = attached(net, "a", "b")
    unmerged = model(x)
    model.set_adapter(["a", "b"])
    both = model(x)
    model.merge_adapter(["a"], rounding="float32")
    outputs_close(model(x), both)
    model.set_adapter("a")
    outputs_close(model(x), unmerged)
    for layer in model.lora_layers.values():
        merged = getattr(layer.holder, layer.weight_name)
        assert merged.dtype == torch.float32
        close(layer.dense(merged), layer.dense_weight().float() + layer.delta("a"))
    model.disable_adapter_layers()
    assert all(weight.dtype == low for weight in weights_of(model))
    outputs_close(model(x), kind.net(low)(x))
    model.enable_adapter_layers()
    whole = copy.deepcopy(model).merge_and_unload(["b"], rounding="float32")
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    close(whole(x.float() if x.is_floating_point() else x), unmerged.float(), 0.03)


def test_no_order_of_merging_leaves_a_trace(kind: Any, dtype: torch.dtype) -> None:
    """After fifty merges, swaps and switches the base's bits come back, and a swap does what it did."""
    names = ["a", "b", "c"]
    draw = random.Random(7)
    model = attached(kind.net(dtype), *names)
    before = weights_of(model)
    first = {}
    for subset in (["a"], ["b", "c"], names):
        model.swap_adapter(subset)
        first[tuple(subset)] = weights_of(model)

    def some(least: int) -> list[str]:
        return draw.sample(names, draw.randint(least, 3))

    def rounding() -> Any:
        return draw.choice(["nearest", "stochastic", "float32"])

    steps = [
        lambda: model.merge_adapter(some(1), rounding=rounding()),
        lambda: model.swap_adapter(some(0), rounding=rounding()),
        model.unmerge_adapter,
        model.disable_adapter_layers,
        model.enable_adapter_layers,
        lambda: model.set_adapter(some(2)),
    ]
    for _ in range(50):
        draw.choice(steps)()
    model.enable_adapter_layers()
    for subset, wanted in first.items():
        model.swap_adapter(list(reversed(subset)))
        assert all(torch.equal(*pair) for pair in zip(weights_of(model), wanted, strict=True))
    model.unmerge_adapter()
    assert all(torch.equal(*pair) for pair in zip(weights_of(model), before, strict=True))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "float32"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_one_bad_layer_leaves_all_layers_alone(rounding: Any, bad: float) -> None:
    if bad == 1e30 and rounding == "float32":
        bad = 3e38
    model = LoraModel(llama().to(torch.float16), config("q_proj", "up_proj", "embed_tokens"), "good")
    torch.manual_seed(2)
    model.attach("bad", config("q_proj", "up_proj", "embed_tokens"))
    with torch.no_grad():
        model.lora_layers["model.layers.1.mlp.up_proj"].factors("bad")[1][0, 0] = bad
        model.lora_layers["model.layers.1.mlp.up_proj"].factors("bad")[0][0] = 5
    for merged in ([], ["good"]):
        model.swap_adapter(merged)
        before, out = weights_of(model), logits(model)
        with pytest.raises(AdapterError, match=r"bad gives weights that are not finite|bad, good gives"):
            model.merge_adapter(["bad"], rounding=rounding)
        assert model.merged_adapters == merged
        assert all(torch.equal(*pair) for pair in zip(weights_of(model), before, strict=True))
        assert torch.equal(logits(model), out)


def test_a_grouped_convolution_is_one_group_while_merged() -> None:
    net = KINDS["conv2d-groups"].net()
    conv, shape = net.layer, tuple(net.layer.weight.shape)
    model, x = attached(net, "a", "b"), KINDS["conv2d-groups"].x()
    out = model(x)
    for _ in range(2):
        model.merge_adapter()
        assert (conv.groups, tuple(conv.weight.shape)) == (1, (6, 4, 3, 3))
        close(model(x), out)
        model.disable_adapter_layers()
        assert (conv.groups, tuple(conv.weight.shape)) == (2, shape)
        model.enable_adapter_layers()
        assert conv.groups == 1
        model.swap_adapter("b")
        assert conv.groups == 1
        model.unmerge_adapter()
        assert (conv.groups, tuple(conv.weight.shape)) == (2, shape)
        assert torch.equal(model(x), out)
    plain = model.merge_and_unload()
    assert (conv.groups, plain.layer) == (1, conv)
    close(plain(x), out)


@pytest.mark.parametrize(
    "variant", [{}, {"use_dora": True}, {"lora_bias": True}], ids=["plain", "dora", "bias"]
)
def test_a_grouped_convolution_merges_exactly(variant: dict[str, Any]) -> None:
    for name in ("conv2d-groups", "conv1d-depthwise"):
        if name == "conv1d-depthwise" and "lora_bias" in variant:
            continue  # it has no bias to merge one into
        x = KINDS[name].x(torch.float64)
        model = attached(KINDS[name].net(torch.float64), **variant)
        with torch.no_grad():
            for key, tensor in model.lora_layers["layer"].tensors("default").items():
                tensor.mul_(1.3 if "magnitude" in key else 1)
        out = model(x)
        model.merge_adapter()
        close(model(x), out, 1e-12)


def test_an_unknown_rounding_is_refused() -> None:
    model = attached(KINDS["linear"].net())
    with pytest.raises(ConfigError, match=r"rounding is 'stohastic'.*Did you mean 'stochastic'"):
        model.merge_adapter(rounding="stohastic")
    assert model.merged_adapters == []


def test_values_for_a_merged_adapter_are_refused() -> None:
    model = attached(KINDS["linear"].net())
    adapter = model.adapter("default")
    model.merge_adapter()
    with pytest.raises(AdapterError, match="'default' is merged; call unmerge_adapter"):
        model.load("default", adapter)
