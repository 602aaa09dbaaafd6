"""Layers that read the same input compute together what each computes alone, and nothing stale."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loralab.core import function
from loralab.core.config import LoraConfig
from loralab.core.layers.together import find_together
from loralab.core.model import LoraModel
from loralab.errors import AdapterError

WIDTH = 12


class Block(nn.Module):
    """q, k and v of one input, or k and v of another."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH, bias=name != "k_proj"))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        other = x if other is None else other
        mixed = self.q_proj(x) * self.k_proj(other) + self.v_proj(other)
        return self.o_proj(torch.tanh(mixed))


def model(targets: str = r".*_proj", dropout: float = 0.0, adapters: int = 1) -> LoraModel:
    torch.manual_seed(0)
    made = LoraModel(
        Block(), LoraConfig(r=3, target_modules=targets, init_lora_weights=False, lora_dropout=dropout)
    )
    for number in range(1, adapters):
        config = LoraConfig(r=2 + number, lora_alpha=5, target_modules=targets, init_lora_weights=False)
        made.attach(f"more{number}", config)
    return made


def apart(made: LoraModel) -> LoraModel:
    """A copy whose layers do not know each other."""
    made = copy.deepcopy(made)
    for layer in made.lora_layers.values():
        layer.together = None  # type: ignore[attr-defined]
    return made


def measured(made: LoraModel, *inputs: Tensor) -> list[Tensor]:
    given = [x.detach().clone().requires_grad_() for x in inputs]
    out = made(*given)
    trained = [p for p in made.parameters() if p.requires_grad]
    return [out.detach(), *torch.autograd.grad((out * out.detach().cos()).sum(), [*given, *trained])]


def close(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """How many layers each computation was for, since the last question."""
    seen: list[int] = []
    apply = function._LoraLinears.apply
    monkeypatch.setattr(
        function._LoraLinears,
        "apply",
        lambda plan, layers, *rest: seen.append(layers) or apply(plan, layers, *rest),
    )

    def asked() -> list[int]:
        found = list(seen)
        seen.clear()
        return found

    return asked


def test_output_and_gradients_are_those_apart(calls: Callable[[], list[int]]) -> None:
    made, x = model().double(), torch.randn(2, 7, WIDTH, dtype=torch.float64)
    alone = measured(apart(made), x)
    assert calls() == [1, 1, 1, 1]
    close(measured(made, x), alone)
    assert calls() == [3, 1]


def test_another_input_for_some_is_seen_and_soon_given_up(calls: Callable[[], list[int]]) -> None:
    made, x, other = model(), torch.randn(5, WIDTH), torch.randn(5, WIDTH)
    expected = measured(apart(made), x, other)
    calls()
    for _ in range(3):
        close(measured(made, x, other), expected)
    calls()
    close(measured(made, x, other), expected)
    assert calls() == [1, 1, 1, 1]


def test_layers_without_an_adapter_are_left_out(calls: Callable[[], list[int]]) -> None:
    made, x = model("[qv]_proj"), torch.randn(5, WIDTH)
    alone = measured(apart(made), x)
    calls()
    close(measured(made, x), alone)
    assert calls() == [2]


def test_what_is_dropped_is_dropped_for_all() -> None:
    made = model(dropout=0.5).train()
    with torch.no_grad():
        for layer in made.lora_layers.values():
            for factor in (layer.lora_A, layer.lora_B):  # type: ignore[attr-defined]
                factor["default"].weight.copy_(
                    made.lora_layers["q_proj"].get_parameter(
                        f"{'lora_A' if factor is layer.lora_A else 'lora_B'}.default.weight"  # type: ignore[attr-defined]
                    )
                )
    x = torch.randn(6, WIDTH)
    first, second = (made.lora_layers[name] for name in ("q_proj", "k_proj"))
    terms = [layer(x) - layer.base_layer(x) for layer in (first, second)]
    torch.testing.assert_close(*terms)
    assert not torch.allclose(first(x) - first.base_layer(x), terms[0]), "the next mask is another"


def test_nothing_stale_is_handed_out() -> None:
    made, x = model(adapters=2), torch.randn(5, WIDTH)
    q, k = (made.lora_layers[name] for name in ("q_proj", "k_proj"))
    fresh = apart(made).lora_layers["k_proj"]

    q(x)
    made.set_adapter("more1")
    fresh._activation.names = ("more1",)
    torch.testing.assert_close(k(x), fresh(x))

    q(x)
    with torch.no_grad():
        for layer in (k, fresh):
            layer.lora_B["more1"].weight.mul_(2)  # type: ignore[attr-defined]
    torch.testing.assert_close(k(x), fresh(x))

    q(x)
    x.mul_(2)
    torch.testing.assert_close(k(x), fresh(x))

    q(x)
    with torch.no_grad():
        assert not k(x).requires_grad or torch.allclose(k(x), fresh(x))


def test_outputs_may_be_changed_in_place() -> None:
    class Scaled(Block):
        def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
            return self.o_proj(self.q_proj(x).mul_(0.5) * self.k_proj(x).add_(1) + self.v_proj(x))

    config = LoraConfig(r=3, target_modules=r".*_proj", init_lora_weights=False)
    made = LoraModel(Scaled(), config)
    close(measured(made, torch.ones(2, 5, WIDTH)), measured(apart(made), torch.ones(2, 5, WIDTH)))


def test_a_model_can_be_copied_in_the_middle() -> None:
    made, x = model(), torch.randn(5, WIDTH)
    made.lora_layers["q_proj"](x)
    other = copy.deepcopy(made)
    close(measured(other, x), measured(apart(made), x))
    group = other.lora_layers["q_proj"].together  # type: ignore[attr-defined]
    assert group.layers[0] is other.lora_layers["q_proj"]


def test_groups_are_found_by_name_and_place() -> None:
    names = ["a.q_proj", "a.k_proj", "b.q_proj", "gate_proj", "up_proj", "b.w3", "down_proj"]
    groups = find_together({name: name for name in names})  # type: ignore[misc]
    assert [group.layers for group in groups] == [("a.q_proj", "a.k_proj"), ("gate_proj", "up_proj")]


# Many adapters over the tokens of one row.


@pytest.mark.parametrize("lone", [False, True], ids=["together", "apart"])
def test_spans_run_with_their_own_adapters(lone: bool) -> None:
    made = model(adapters=3)
    for name in ("default", "more1", "more2"):
        for layer in made.lora_layers.values():
            layer.train_adapter(name, True)
    made = apart(made) if lone else made
    x = torch.randn(1, 20, WIDTH)
    names, spans = ["more2", "__base__", "default", "more1", "more2"], [6, 3, 1, 8, 2]
    with made.rows(names, spans):
        found = measured(made, x)
    parts = []
    grads: dict[str, Tensor] = {}
    made.zero_grad()
    start = 0
    for name, span in zip(names, spans, strict=True):
        piece = x[:, start : start + span]
        with made.rows([name]):
            out = made(piece)
        if name != "__base__":
            (out * out.detach().cos()).sum().backward()
        parts.append(out.detach())
        start += span
    torch.testing.assert_close(found[0], torch.cat(parts, 1), rtol=1e-5, atol=1e-6)
    grads = {name: p.grad for name, p in made.named_parameters() if p.requires_grad}
    for (name, expected), got in zip(grads.items(), found[2:], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_spans_through_layers_that_are_not_one_function() -> None:
    made = LoraModel(
        nn.Sequential(nn.Embedding(9, WIDTH), nn.Linear(WIDTH, WIDTH)),
        LoraConfig(r=2, target_modules=["0", "1"], init_lora_weights=False, use_dora=True),
    )
    made.attach("b", LoraConfig(r=3, target_modules=["0"], init_lora_weights=False))
    ids = torch.arange(8)[None]
    with made.rows(["b", "default"], [5, 3]):
        found = made(ids)
    for name, piece in (("b", slice(0, 5)), ("default", slice(5, 8))):
        with made.rows([name]):
            torch.testing.assert_close(found[:, piece], made(ids[:, piece]))


def test_spans_that_do_not_fit_are_told() -> None:
    made = model(adapters=2)
    with (
        pytest.raises(AdapterError, match="1 spans for 2 adapter_names"),
        made.rows(["default", "more1"], [4]),
    ):
        pass
    with (
        made.rows(["default", "more1"], [4, 4]),
        pytest.raises(AdapterError, match="8 tokens in all for a batch of 9"),
    ):
        made(torch.randn(1, 9, WIDTH))


def test_names_alone_do_not_bring_layers_together() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2, self.w3 = nn.Linear(10, 20), nn.Linear(20, 30), nn.Linear(30, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.w3(self.w2(self.w1(x)))

    config = LoraConfig(r=2, target_modules=["w1", "w2", "w3"], init_lora_weights=False)
    assert LoraModel(Net(), config)(torch.randn(6, 10)).shape == (6, 5)


def test_a_scale_set_in_between_counts() -> None:
    made, x = model(), torch.randn(5, WIDTH)
    fresh = apart(made).lora_layers["k_proj"]
    made.lora_layers["q_proj"](x)
    for layer in (made.lora_layers["k_proj"], fresh):
        layer.scaling["default"] = 50.0
    torch.testing.assert_close(made.lora_layers["k_proj"](x), fresh(x))


def test_reentrant_checkpointing_drops_the_same_again() -> None:
    made = model(dropout=0.3).train()
    x = torch.randn(2, 700, WIDTH, requires_grad=True)
    found = []
    for again in (False, True):
        torch.manual_seed(3)
        out = checkpoint(made, x, use_reentrant=True) if again else made(x)
        made.zero_grad()
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in made.parameters() if p.grad is not None)])
    assert len(found[0]) == 9
    close(*found)
