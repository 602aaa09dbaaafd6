"""PEFT's `add_weighted_adapter` as the oracle, where it is right; the true sum where it is not."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralab import LoraConfig, PeftModel, get_peft_model
from loralab.core.weighted import COMBINATION_TYPES
from loralab.errors import AdapterError, ConfigError

from .conftest import quiet

PLAIN: dict[str, Any] = {"r": 4, "lora_alpha": 6, "init_lora_weights": False}
ALL = ["linear", "gpt2", "embed", "conv1d", "conv2d", "pointwise", "conv3d"]
# PEFT's SVD types know no other convolution than Conv2d.
IN_PEFT = ["linear", "gpt2", "embed", "conv2d", "pointwise"]
PRUNING = [kind for kind in COMBINATION_TYPES if "svd" not in kind and kind not in ("cat", "exact", "linear")]


class Net(nn.Module):
    """One layer of each kind; only their weights matter here."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 9)
        self.gpt2 = Conv1D(9, 12)
        self.embed = nn.Embedding(20, 8)
        self.conv1d = nn.Conv1d(4, 6, 3)
        self.conv2d = nn.Conv2d(4, 6, (3, 2))
        self.pointwise = nn.Conv2d(5, 6, 1)
        self.conv3d = nn.Conv3d(3, 6, (1, 1, 3))


def pair(one: dict[str, Any], two: dict[str, Any]) -> tuple[Any, PeftModel]:
    """The same model with the same two adapters, "one" and "two", in PEFT and here."""
    models = []
    for library, make in ((peft, peft.get_peft_model), (None, get_peft_model)):
        config = peft.LoraConfig if library else LoraConfig
        torch.manual_seed(0)
        with quiet():
            model: Any = make(Net(), config(**PLAIN | one), "one")
            model.add_adapter("two", config(**PLAIN | two))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        models.append(model)
    return models[0], models[1]


def combined(model: Any, weights: tuple[float, float], **settings: Any) -> Any:
    """Combine; PEFT is seeded once more after it has initialised the new adapter, which takes draws."""
    attach = getattr(model.base_model, "inject_adapter", None)
    if attach:
        model.base_model.inject_adapter = lambda *args: (attach(*args), torch.manual_seed(7))
    torch.manual_seed(7)
    with quiet():
        model.add_weighted_adapter(["one", "two"], list(weights), "both", **settings)
    return model


def delta(model: Any, path: str, name: str = "both") -> Tensor:
    return model.base_model.model.get_submodule(path).get_delta_weight(name).detach()


def true_sum(model: PeftModel, path: str, weights: tuple[float, float]) -> Tensor:
    """The weighted sum in float64, from the factors."""
    layer = model.base_model.lora_layers[path]
    total = torch.zeros(layer.matrix(layer.weight).shape, dtype=torch.float64)
    for name, weight in zip(("one", "two"), weights, strict=True):
        if name in layer.adapters:
            a, b = (factor.detach().double().flatten(1) for factor in layer.factors(name))
            total += weight * layer.scaling[name] * (b @ a)
    return layer.unmatrix(total.to(layer.weight.dtype))


def away(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.2, -0.5), (-1.0, -0.4)])
@pytest.mark.parametrize("kind", ["cat", "linear", *PRUNING])
def test_the_same_factors_on_every_kind_of_layer(kind: str, weights: tuple[float, float]) -> None:
    settings: dict[str, Any] = {"combination_type": kind}
    if kind in PRUNING:
        settings["density"] = 0.6
    theirs, ours = pair({"target_modules": ALL}, {"target_modules": ALL, "lora_alpha": 3})
    combined(theirs, weights, **settings)
    combined(ours, weights, **settings)
    wanted = dict(theirs.named_parameters())
    mine = {name: p for name, p in ours.named_parameters() if ".both" in name}
    assert len(mine) == 2 * len(ALL)
    for name, parameter in mine.items():
        close(parameter, wanted[name])
        assert not parameter.requires_grad


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.2, -0.5)])
@pytest.mark.parametrize(
    "kind", ["svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"]
)
@pytest.mark.parametrize("more", [{}, {"svd_rank": 3}, {"svd_rank": 5, "svd_full_matrices": False}])
def test_the_same_deltas_from_an_svd(kind: str, weights: tuple[float, float], more: dict[str, Any]) -> None:
    settings = {"combination_type": kind, **more} | ({} if kind == "svd" else {"density": 0.5})
    # The draws for a weight that is stored transposed come in another order.
    targets = IN_PEFT if "dare" not in kind else ["linear", "conv2d", "pointwise"]
    theirs, ours = pair({"target_modules": targets}, {"target_modules": targets, "r": 3})
    combined(theirs, weights, **settings)
    combined(ours, weights, **settings)
    for path in targets:
        close(delta(ours, path), delta(theirs, path))


@pytest.mark.parametrize("kind", ["ties", "ties_svd", "dare_ties"])
def test_signs_by_majority(kind: str) -> None:
    settings = {"combination_type": kind, "density": 0.5, "majority_sign_method": "frequency"}
    theirs, ours = pair({"target_modules": IN_PEFT}, {"target_modules": IN_PEFT})
    combined(theirs, (0.5, 0.8), **settings)
    combined(ours, (0.5, 0.8), **settings)
    for path in IN_PEFT:
        close(delta(ours, path), delta(theirs, path))


@pytest.mark.parametrize("kind", ["svd", "ties_svd"])
def test_clamped_like_peft(kind: str) -> None:
    settings = {"combination_type": kind, "svd_clamp": 0.9} | ({"density": 0.5} if "ties" in kind else {})
    theirs, ours = pair({"target_modules": IN_PEFT}, {"target_modules": IN_PEFT})
    combined(theirs, (0.7, 0.3), **settings)
    combined(ours, (0.7, 0.3), **settings)
    for path in IN_PEFT:
        close(delta(ours, path), delta(theirs, path))


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.2, -0.5)])
@pytest.mark.parametrize("kind", ["exact", "cat"])
@pytest.mark.parametrize(
    "two",
    [
        {"target_modules": ALL},
        {"target_modules": ALL, "r": 2, "use_rslora": True, "lora_alpha": 5},
        {
            "target_modules": ["linear", "conv2d"],
            "rank_pattern": {"conv2d": 3},
            "alpha_pattern": {"lin.*": 2},
        },
    ],
    ids=["alike", "rslora", "patterns"],
)
def test_the_true_sum(kind: str, weights: tuple[float, float], two: dict[str, Any], tmp_path: Path) -> None:
    _, ours = pair({"target_modules": ALL, "use_rslora": True}, two)
    combined(ours, weights, combination_type=kind)
    for path in ALL:
        assert away(delta(ours, path), true_sum(ours, path, weights)) < 1e-6
    assert ours.active_adapters == ["one"]
    ours.save_pretrained(tmp_path, ["both"])
    again = PeftModel.from_pretrained(Net(), tmp_path / "both")
    with quiet():
        theirs = peft.PeftModel.from_pretrained(Net(), tmp_path / "both")
    for path in ALL:
        assert away(delta(again, path, "default"), true_sum(ours, path, weights)) < 1e-6
        # PEFT cannot tell the delta of this kernel from that of a pointwise Conv2d.
        if path != "conv3d":
            assert away(delta(theirs, path, "default"), true_sum(ours, path, weights)) < 1e-6


def test_exact_takes_no_more_rank_than_it_needs_and_svd_no_more_than_it_is_given() -> None:
    _, ours = pair({"target_modules": ["linear"]}, {"target_modules": ["linear"]})
    combined(ours, (0.5, 0.5), combination_type="exact")
    ours.add_weighted_adapter(["one", "one"], [0.5, 0.5], "same", "exact")
    ours.add_weighted_adapter(["one", "two"], [0.5, 0.5], "small", "exact", svd_rank=2)
    ours.add_weighted_adapter(["one", "two"], [0.5, 0.5], "default")
    layer = ours.base_model.lora_layers["linear"]
    assert [layer.r[name] for name in ("both", "same", "small", "default")] == [8, 4, 2, 4]
    s = torch.linalg.svdvals(true_sum(ours, "linear", (0.5, 0.5)))
    found = away(delta(ours, "linear", "small"), true_sum(ours, "linear", (0.5, 0.5)))
    assert found == pytest.approx(float(s[2:].norm() / s.norm()), rel=1e-5)


def test_rslora_is_off_by_the_root_of_the_rank_in_peft_and_not_here() -> None:
    settings = {"target_modules": ["linear"], "use_rslora": True}
    theirs, ours = pair(settings, settings)
    for kind in ("cat", "svd", "linear"):
        for model in (theirs, ours):
            model.base_model.add_weighted_adapter(["one", "two"], [0.7, 0.3], kind, kind)
        mine, wrong = delta(ours, "linear", kind), delta(theirs, "linear", kind)
        rank = ours.base_model.lora_layers["linear"].r[kind]
        close(mine * rank**0.5, wrong)


@pytest.mark.parametrize("kind", ["exact", "cat", "svd", "linear"])
def test_biases_of_b_are_summed(kind: str) -> None:
    biased = {"target_modules": ["linear", "conv2d"], "lora_bias": True, "init_lora_weights": False}
    _, ours = pair(biased, {"target_modules": ["linear"], "lora_alpha": 3})
    combined(ours, (0.7, -0.3), combination_type=kind)
    for path in ("linear", "conv2d"):
        layer = ours.base_model.lora_layers[path]
        wanted = 0.7 * layer.scaling["one"] * layer.tensors("one")["lora_B.bias"]
        close(layer.tensors("both")["lora_B.bias"], wanted)
    x = torch.randn(3, 12)
    if kind in ("exact", "cat"):
        outs = {}
        for name in ("one", "two", "both"):
            ours.set_adapter(name)
            with torch.no_grad():
                outs[name] = ours.base_model.model.linear(x)
        with ours.disable_adapter(), torch.no_grad():
            base = ours.base_model.model.linear(x)
        close(outs["both"] - base, 0.7 * (outs["one"] - base) - 0.3 * (outs["two"] - base))


def test_linear_has_cross_terms_and_exact_has_none() -> None:
    theirs, ours = pair({"target_modules": ["linear"]}, {"target_modules": ["linear"]})
    combined(theirs, (0.5, 0.5), combination_type="linear")
    combined(ours, (0.5, 0.5), combination_type="exact")
    wanted = true_sum(ours, "linear", (0.5, 0.5))
    assert away(delta(theirs, "linear"), wanted) > 0.3
    assert away(delta(ours, "linear"), wanted) < 1e-6


def test_scale_that_was_set_counts() -> None:
    _, ours = pair({"target_modules": ["linear"]}, {"target_modules": ["linear"]})
    ours.base_model.lora_layers["linear"].set_scale("one", 3.0)
    combined(ours, (0.5, 0.5), combination_type="cat")
    assert away(delta(ours, "linear"), true_sum(ours, "linear", (0.5, 0.5))) < 1e-6


@pytest.mark.parametrize(
    ("one", "two", "fault"),
    [
        ({}, {"use_dora": True}, "'two' is a dora adapter.*Merge it into the base"),
        ({"bias": "lora_only"}, {}, r"'one' trains the base's biases \(bias='lora_only'\)"),
        ({"init_lora_weights": "olora"}, {}, "'one' was started by 'olora'"),
        ({"modules_to_save": ["gpt2"]}, {}, r"gpt2\.weight is trained in full .*'one' and 'two'"),
        (
            {"target_modules": ["linear"], "lora_bias": True},
            {"target_modules": ["embed"]},
            "'embed' is an embedding, which cannot have the bias",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused_by_name(
    one: dict[str, Any], two: dict[str, Any], fault: str
) -> None:
    targets = {"target_modules": ["linear", "embed"] if "lora_bias" not in one else ["linear"]}
    model: Any = get_peft_model(Net(), LoraConfig(**PLAIN | targets | one), "one")
    model.add_adapter("two", LoraConfig(**PLAIN | targets | two))
    with pytest.raises(AdapterError, match=fault) as caught:
        model.add_weighted_adapter(["one", "two"], [1, 1], "both")
    assert "\n" not in str(caught.value)
    assert list(model.peft_config) == ["one", "two"]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"combination_type": "exakt"}, "unknown combination_type 'exakt'.*Did you mean 'exact'"),
        ({"combination_type": "ties"}, "'ties' needs a density"),
        ({"combination_type": "ties", "density": 1.5}, r"density is 1\.5"),
        (
            {"combination_type": "ties", "density": 0.5, "majority_sign_method": "most"},
            "unknown way .*'most'",
        ),
        ({"density": 0.5}, r"density=0\.5 has no effect with combination_type 'svd'"),
        ({"combination_type": "cat", "svd_rank": 3}, "svd_rank=3 has no effect with combination_type 'cat'"),
        ({"combination_type": "linear", "svd_clamp": 0.9}, r"svd_clamp=0\.9 has no effect"),
        ({"majority_sign_method": "frequency"}, "majority_sign_method='frequency' has no effect"),
        ({"svd_rank": 0}, "svd_rank is 0"),
        ({"svd_clamp": 2}, "svd_clamp is 2"),
        ({"svd_driver": "gesdd"}, "svd_driver is 'gesdd'"),
        ({"weights": [1.0]}, "2 adapters and 1 weights"),
        ({"weights": [1.0, float("inf")]}, "expected numbers"),
        ({"adapter_name": "one"}, "an adapter 'one' already"),
        ({"adapters": ["one", "twoo"]}, "no adapter 'twoo'.*Did you mean 'two'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], fault: str) -> None:
    _, ours = pair({"target_modules": ["linear"]}, {"target_modules": ["linear"]})
    call = {"adapters": ["one", "two"], "weights": [1, 1], "adapter_name": "both"} | settings
    with pytest.raises((ConfigError, AdapterError), match=fault) as caught:
        ours.add_weighted_adapter(**call)
    assert "\n" not in str(caught.value)
    assert list(ours.peft_config) == ["one", "two"]


@pytest.mark.parametrize("kind", ["linear", *PRUNING])
def test_factors_of_different_ranks_cannot_be_mixed(kind: str) -> None:
    _, ours = pair({"target_modules": ["linear"]}, {"target_modules": ["linear"], "r": 2})
    density = 0.5 if kind in PRUNING else None
    with pytest.raises(AdapterError, match="equal ranks; at 'linear' 'one' has 4, 'two' has 2"):
        ours.add_weighted_adapter(["one", "two"], [1, 1], "both", kind, density=density)


def test_a_grouped_convolution_has_no_product() -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    model: Any = get_peft_model(net, LoraConfig(**PLAIN, target_modules=["0"]), "one")
    model.add_adapter("two", LoraConfig(**PLAIN, target_modules=["0"]))
    with pytest.raises(AdapterError, match="'0' is a grouped convolution"):
        model.add_weighted_adapter(["one", "two"], [1, 1], "both")
    model.add_weighted_adapter(["one", "one"], [0.25, 0.75], "both", "linear")
    x = torch.randn(1, 4, 5, 5)
    one = model(x)
    model.set_adapter("both")
    assert not torch.allclose(one, model(x))


def test_heads_that_are_alike_are_kept() -> None:
    model: Any = get_peft_model(
        Net(), LoraConfig(**PLAIN, target_modules=["linear"], modules_to_save=["gpt2"])
    )
    with torch.no_grad():
        model.base_model.model.gpt2.modules_to_save["default"].weight.add_(1)
    model.add_weighted_adapter(["default"], [2.0], "both", "exact")
    saved = model.base_model.model.gpt2.modules_to_save
    assert torch.equal(saved["both"].weight, saved["default"].weight)
    assert not saved["both"].weight.requires_grad
    close(delta(model, "linear"), 2 * delta(model, "linear", "default"))
