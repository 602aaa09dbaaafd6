"""Every kind of layer that can be adapted, each alone in a small model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Net(nn.Module):
    """A model of one layer, at the path "layer"."""

    def __init__(self, kind: "Kind") -> None:
        super().__init__()
        self.layer = kind.make()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return self.kind.call(self.layer, x)


@dataclass(frozen=True)
class Kind:
    """How to make a layer, and an input for it."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] | None
    """The shape of the input; None for word ids."""
    call: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x)
    targets: dict[str, Any] = field(default_factory=lambda: {"target_modules": ["layer"]})
    """What makes a config adapt the layer."""
    linear: bool = True
    """Whether the output is linear in what adapters add to the weights."""

    def net(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Net:
        torch.manual_seed(seed)
        return Net(self).to(dtype)

    def x(self, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.shape is None:
            return torch.randint(0, 11, (2, 7), generator=generator)
        return torch.randn(self.shape, generator=generator).to(dtype)


def gpt2_linear() -> nn.Module:
    layer = Conv1D(6, 10)
    nn.init.normal_(layer.bias)
    return layer


class Experts(nn.Module):
    """Three experts, each of which sees every token: [E, O, I] stacks, or [E, I, O] ones."""

    def __init__(self, is_transposed: bool = False) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        shapes = {"up": (8, 6), "down": (5, 8)}
        for name, (rows, columns) in shapes.items():
            shape = (columns, rows) if is_transposed else (rows, columns)
            setattr(self, name, nn.Parameter(torch.randn(3, *shape) / columns**0.5))

    def forward(self, x: Tensor) -> Tensor:
        up, down = (w if self.is_transposed else w.mT for w in (self.up, self.down))
        return (torch.tanh(x @ up) @ down).sum(0)


class Matrix(nn.Module):
    """A parameter that is no layer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 10))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table.t()


def attend(attention: nn.Module, x: Tensor) -> Tensor:
    return attention(x, x.flip(1), x / 2, need_weights=False)[0]


def attention(**settings: Any) -> nn.Module:
    # Three heads: torch's fast path, whose rounding differs, wants an even number.
    made = nn.MultiheadAttention(6, 3, batch_first=True, **settings)
    for name, parameter in made.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return made


KINDS = {
    "linear": Kind(lambda: nn.Linear(10, 6), (2, 5, 10)),
    "linear-no-bias": Kind(lambda: nn.Linear(10, 6, bias=False), (2, 5, 10)),
    "gpt2-conv1d": Kind(gpt2_linear, (2, 5, 10)),
    "embedding": Kind(lambda: nn.Embedding(11, 6), None),
    "embedding-padding": Kind(lambda: nn.Embedding(11, 6, padding_idx=3), None),
    "conv1d": Kind(lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "conv2d": Kind(lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 4, 9, 7)),
    "conv2d-no-bias": Kind(lambda: nn.Conv2d(4, 6, 1, bias=False), (2, 4, 5, 5)),
    "conv2d-dilated": Kind(lambda: nn.Conv2d(4, 6, 3, dilation=2, padding="same"), (2, 4, 9, 7)),
    "conv2d-circular": Kind(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 6, 6)),
    "conv2d-groups": Kind(lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
    "conv1d-depthwise": Kind(lambda: nn.Conv1d(4, 8, 3, groups=4, bias=False), (2, 4, 9)),
    "conv3d": Kind(lambda: nn.Conv3d(2, 4, (1, 1, 3), padding=(0, 0, 1)), (2, 2, 3, 4, 5)),
}
KINDS |= {
    "multihead": Kind(attention, (2, 5, 6), attend, linear=False),
    "multihead-no-bias": Kind(lambda: attention(bias=False), (2, 5, 6), attend, linear=False),
    "out-proj": Kind(attention, (2, 5, 6), attend, {"target_modules": ["out_proj"]}),
    "experts": Kind(Experts, (4, 6), targets={"target_parameters": ["layer.up", "layer.down"]}, linear=False),
    "experts-transposed": Kind(
        lambda: Experts(is_transposed=True), (4, 6), targets={"target_parameters": ["layer.down"]}
    ),
    "parameter": Kind(Matrix, (4, 10), targets={"target_parameters": ["table"]}),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", KINDS.values(), ids=KINDS)
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=[str(dtype).removeprefix("torch.") for dtype in DTYPES])


@pytest.fixture(scope="session")
def kinds() -> dict[str, Kind]:
    """All kinds by name."""
    return KINDS
