"""DoRA's row norms: computed once while nothing changes, and again as soon as something does."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from loralab.core.hotswap import hotswap
from loralab.core.model import LoraModel
from loralab.core.variants import dora

from .conftest import KINDS
from .test_identities import attached

NAMES = ["linear", "gpt2-conv1d", "embedding", "conv1d", "conv2d-dilated", "conv2d-groups", "conv3d"]
kinds = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many times norms were computed."""
    calls, compute = [0], dora.row_norms

    def count(state: Any) -> Tensor:
        calls[0] += 1
        return compute(state)

    monkeypatch.setattr(dora, "row_norms", count)
    return calls


def model_of(name: str, *names: str) -> LoraModel:
    model = attached(KINDS[name].net(), *names, use_dora=True)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "magnitude" in key:
                parameter.mul_(1.5)
    return model


def uncached(model: LoraModel, name: str) -> Tensor:
    """What training mode gives, in which nothing is kept."""
    model.train()
    with torch.no_grad():
        out = model(KINDS[name].x())
    model.eval()
    return out


@kinds
def test_norms_are_computed_once_while_nothing_changes(name: str, counted: list[int]) -> None:
    model, x = model_of(name, "a", "b"), KINDS[name].x()
    for active, calls in (("a", 1), ("b", 2), ("a", 2), (["a", "b"], 2)):
        model.set_adapter(active)
        counted[0] = counted[0] if active != "a" or calls == 2 else 0
        for _ in range(3):
            model(x)
        assert counted[0] == calls
    model.train()
    model.set_adapter("a")
    for _ in range(3):
        model(x)
    assert counted[0] == 5


def step(model: LoraModel, x: Tensor) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    model(x).square().sum().backward()
    optimizer.step()


def copied(model: LoraModel, x: Tensor) -> None:
    with torch.no_grad():
        model.lora_layers["layer"].factors("default")[1].mul_(1.7)


def base_copied(model: LoraModel, x: Tensor) -> None:
    with torch.no_grad():
        model.lora_layers["layer"].original_weight.mul_(0.4)


def scaled(model: LoraModel, x: Tensor) -> None:
    model.lora_layers["layer"].set_scale("default", 3.0)


def other(model: LoraModel) -> LoraModel:
    torch.manual_seed(9)
    net = type(model.model)(model.model.kind)
    net.load_state_dict(
        {key: value for key, value in model.model.state_dict().items() if "lora" not in key}, strict=False
    )
    return attached(net, use_dora=True)


def loaded(model: LoraModel, x: Tensor) -> None:
    model.load("default", other(model).adapter("default"))


def swapped(model: LoraModel, x: Tensor) -> None:
    hotswap(model, "default", other(model).adapter("default"))


def state_loaded(model: LoraModel, x: Tensor) -> None:
    model.load_state_dict({key: value * 1.3 for key, value in model.state_dict().items()})


def state_assigned(model: LoraModel, x: Tensor) -> None:
    model.load_state_dict({key: value * 1.3 for key, value in model.state_dict().items()}, assign=True)


def replaced(model: LoraModel, x: Tensor) -> None:
    model.detach("default")
    model.load("default", other(model).adapter("default"))
    model.set_adapter("default")
    model.eval()


def trained_behind_the_back(model: LoraModel, x: Tensor) -> None:
    """As sharded training does: through `.data`, which torch does not count, but in training mode."""
    model.train()
    for factor in model.lora_layers["layer"].factors("default"):
        factor.data.mul_(1.4)
    model.eval()


def averaged_behind_the_back(model: LoraModel, x: Tensor) -> None:
    """As averaging of weights does between evaluations."""
    for factor in model.lora_layers["layer"].factors("default"):
        factor.data.mul_(1.4)


def base_changed_behind_the_back(model: LoraModel, x: Tensor) -> None:
    model.lora_layers["layer"].original_weight.data.mul_(0.4)


CHANGES = [
    *(step, copied, base_copied, scaled, loaded, swapped, state_loaded, state_assigned, replaced),
    *(trained_behind_the_back, averaged_behind_the_back, base_changed_behind_the_back),
]


@kinds
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(name: str, change: Callable[[LoraModel, Tensor], None]) -> None:
    model, x = model_of(name), KINDS[name].x()
    for _ in range(3):
        with torch.no_grad():
            before = model(x)
        change(model, x)
        with torch.no_grad():
            after = model(x)
        assert torch.equal(after, uncached(model, name))
        if change is scaled:
            break
        assert not torch.equal(after, before) or change in (loaded, swapped, replaced)


@kinds
def test_inference_mode_leaves_nothing_that_gradients_cannot_use(name: str, counted: list[int]) -> None:
    model, x = model_of(name), KINDS[name].x()
    counted[0] = 0
    with torch.inference_mode():
        first, second = model(x), model(x)
    assert counted[0] == 1
    assert torch.equal(first, second)
    out = model(x)
    out.square().sum().backward()
    assert counted[0] == 1
    torch.testing.assert_close(out, first.clone())
    assert torch.equal(first, uncached(model, name))


def test_a_model_made_under_inference_mode_runs() -> None:
    with torch.inference_mode():
        model, x = model_of("linear"), KINDS["linear"].x()
        before = model(x)
        for factor in model.lora_layers["layer"].factors("default"):
            factor.mul_(1.5)
        assert not torch.equal(model(x), before)


def test_moving_to_another_precision_is_seen() -> None:
    model, x = model_of("linear"), KINDS["linear"].x()
    single = model(x)
    model.double()
    double = model(x.double())
    assert (single - double).abs().max() < 1e-5
    assert torch.equal(double, uncached_in(model, x.double()))


def uncached_in(model: LoraModel, x: Tensor) -> Tensor:
    model.train()
    out = model(x)
    model.eval()
    return out
