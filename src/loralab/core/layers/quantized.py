"""What the linear layers have in common whose library keeps the weight in a few bits.

The base multiplies by itself, as its library does it; the low-rank term is computed beside it. A merged
weight is put back into the same few bits, which may round away more than the adapter added: the report of
the merge says how much. The original is kept aside and comes back bit for bit.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.layers.linear import LinearLike
from loralab.core.merge import Rounding, finite
from loralab.errors import AdapterError

__all__ = [
    "Bnb4bitBackend",
    "Bnb8bitBackend",
    "QuantizationBackend",
    "QuantizedLinear",
    "TorchaoBackend",
    "is_of",
    "library",
]


def is_of(module: nn.Module, library: str, name: str) -> bool:
    """Return whether `module` is the library's class of that name, or derives from it; imports nothing."""
    return any(c.__name__ == name and c.__module__.startswith(f"{library}.") for c in type(module).__mro__)


def library(name: str) -> Any:
    """Return the library called `name`, which made a layer that is there, so it is imported."""
    return sys.modules[name]


class QuantizationBackend:
    """Which library keeps a layer's weight, under PEFT's names."""

    backend_name = ""
    supports_merge = True


class Bnb8bitBackend(QuantizationBackend):
    """bitsandbytes, 8 bits."""

    backend_name = "bnb 8bit"


class Bnb4bitBackend(QuantizationBackend):
    """bitsandbytes, 4 bits."""

    backend_name = "bnb 4bit"


class TorchaoBackend(QuantizationBackend):
    """torchao."""

    backend_name = "torchao"


class QuantizedLinear(LinearLike):
    """h = Q(W) x + bias + scaling * B A x, where only the library knows how Q(W) is kept.

    A subclass has `dense` and `stored`, which lead from the library's parameter to numbers and back. The
    numbers are a copy, made for DoRA, for a merge and at the start, and dropped afterwards.
    """

    low_rank_merge = False
    fused = False

    def _sizes(self) -> tuple[int, int]:
        base: Any = self.base_layer
        return base.out_features, base.in_features

    def rounded(self, total: Tensor, names: Sequence[str], rounding: Rounding) -> nn.Parameter:
        if rounding != "nearest":
            raise AdapterError(
                f"rounding={rounding!r}: a {type(self.base_layer).__name__} keeps its weight in a few bits, "
                "and its library rounds to the nearest; leave `rounding` out."
            )
        # Not only what is stored: some kernels turn a number that is not finite into one that is.
        finite(nn.Parameter(total, requires_grad=False), names)
        stored = self.stored(total)
        finite(nn.Parameter(self.dense(stored), requires_grad=False), names)
        return stored

    def _moved(self, value: nn.Parameter, fn: Any) -> nn.Parameter:
        with torch.no_grad():
            moved = fn(value)
        return moved if isinstance(moved, nn.Parameter) else nn.Parameter(moved, requires_grad=False)
