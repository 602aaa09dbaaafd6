"""Every kind of layer that can be adapted, each alone in a small model."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Net(nn.Module):
    """A model of one layer, at the path "layer"."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@dataclass(frozen=True)
class Kind:
    """How to make a layer, and an input for it."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] | None
    """The shape of the input; None for word ids."""
    merges: bool = True

    def net(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Net:
        torch.manual_seed(seed)
        return Net(self.make()).to(dtype)

    def x(self, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.shape is None:
            return torch.randint(0, 11, (2, 7), generator=generator)
        return torch.randn(self.shape, generator=generator).to(dtype)


def gpt2_linear() -> nn.Module:
    layer = Conv1D(6, 10)
    nn.init.normal_(layer.bias)
    return layer


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
    "conv2d-groups": Kind(lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6), merges=False),
    "conv3d": Kind(lambda: nn.Conv3d(2, 4, (1, 1, 3), padding=(0, 0, 1)), (2, 2, 3, 4, 5)),
}
MERGING = [name for name, kind in KINDS.items() if kind.merges]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", KINDS.values(), ids=KINDS)
    if "merging" in metafunc.fixturenames:
        metafunc.parametrize("merging", [KINDS[name] for name in MERGING], ids=MERGING)
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=[str(dtype).removeprefix("torch.") for dtype in DTYPES])


@pytest.fixture(scope="session")
def kinds() -> dict[str, Kind]:
    """All kinds by name."""
    return KINDS
