"""Compiled layers compute what they do uncompiled, in one graph, which is not made again for a new length."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from loralab.core.config import LoraConfig
from loralab.core.model import LoraModel
from loralab.core.norm import rms_norm

WIDTH = 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(WIDTH), requires_grad=False)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = rms_norm(x, self.scale, 1e-5)
        return self.o_proj(torch.tanh(self.q_proj(x) * self.k_proj(x) + self.v_proj(x)))


def model(dropout: float) -> LoraModel:
    torch.manual_seed(0)
    config = LoraConfig(r=3, target_modules=r".*_proj", init_lora_weights=False, lora_dropout=dropout)
    return LoraModel(Block(), config).train()


@pytest.fixture(autouse=True)
def afresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def compiled(made: LoraModel) -> nn.Module:
    # The whole of the compiler but for the C++ at its end, which takes most of the time.
    return torch.compile(made, backend="aot_eager", dynamic=True)  # type: ignore[return-value]


def gradients(made: nn.Module, trained: list[Tensor], x: Tensor) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    out = made(x)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *trained])]


def trained(made: nn.Module) -> list[Tensor]:
    return [p for p in made.parameters() if p.requires_grad]


def test_output_and_gradients_stay_and_lengths_share_one_graph() -> None:
    eager = model(0.0)
    made = copy.deepcopy(eager)
    fast = compiled(made)
    for length in (9, 14, 31, 7):
        x = torch.randn(2, length, WIDTH)
        for one, other in zip(
            gradients(fast, trained(made), x), gradients(eager, trained(eager), x), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_dropout_is_drawn_anew_and_is_the_same_forwards_and_backwards() -> None:
    made = model(0.5)
    fast = compiled(made)
    x = torch.randn(2, 9, WIDTH)
    assert not torch.equal(fast(x), fast(x))
    assert not counters["graph_break"]
    # The term is linear in B: its value is that of its gradient, mask for mask.
    layer = made.lora_layers["o_proj"]
    b = layer.lora_B["default"].weight  # type: ignore[attr-defined]
    out = torch.compile(layer, backend="aot_eager")(x) - layer.base_layer(x)
    (grad,) = torch.autograd.grad(out.sum(), b)
    torch.testing.assert_close((grad * b).sum(), out.sum().detach(), rtol=1e-3, atol=1e-3)
