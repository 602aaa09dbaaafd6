"""What merging does to a weight: one sum in fp32, one rounding, and how much of the delta outlives it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from loralab.core.algebra import wide
from loralab.errors import AdapterError, ConfigError, did_you_mean

__all__ = [
    "LayerMerge",
    "MergeReport",
    "Merged",
    "Rounding",
    "add_low_rank",
    "check_rounding",
    "round_randomly",
    "sum_low_rank",
    "total",
]

Rounding = Literal["nearest", "stochastic", "float32"]
"""How a merged weight, summed in fp32, gets into the base's precision; "float32" leaves it as it is."""

_BLOCK = 1 << 17
"""The numbers of a weight that are merged at a time: half a megabyte in fp32."""

_FRACTION_BITS = {torch.bfloat16: (7, -126), torch.float16: (10, -14)}
"""By dtype: the bits after the point, and the exponent of the smallest normal number."""


@dataclass(frozen=True)
class Merged:
    """The parameters of one layer with adapters merged into them, not yet in place."""

    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    wanted: Tensor | None = None
    """|the deltas' sum|, Frobenius norm."""
    missed: Tensor | None = None
    """|what the rounded weight holds of that sum - the sum|."""


@dataclass(frozen=True)
class LayerMerge:
    """What became of the deltas in one layer."""

    wanted: float
    """The Frobenius norm of the deltas' sum."""
    missed: float
    """The Frobenius norm of what rounding took from it or added to it."""

    @property
    def error(self) -> float:
        """|applied - wanted| / |wanted|: 0 if the weight holds the deltas whole, near 1 if it lost them."""
        return self.missed / self.wanted if self.wanted else 0.0


@dataclass(frozen=True)
class MergeReport:
    """How much of the deltas outlived the rounding of a merge."""

    layers: Mapping[str, LayerMerge]

    @property
    def error(self) -> float:
        """|applied - wanted| / |wanted| over all layers together."""
        wanted = math.sqrt(sum(layer.wanted**2 for layer in self.layers.values()))
        missed = math.sqrt(sum(layer.missed**2 for layer in self.layers.values()))
        return missed / wanted if wanted else 0.0

    @property
    def worst(self) -> str:
        """The path of the layer that lost most, "" if nothing was merged."""
        return max(self.layers, key=lambda path: self.layers[path].error, default="")

    def __str__(self) -> str:
        if not self.layers:
            return "nothing is merged"
        worst = self.layers[self.worst].error
        return (
            f"merged into {len(self.layers)} modules; rounding changed the delta by {self.error:.2%} "
            f"of its norm ({worst:.2%} in {self.worst})"
        )


def total(original: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    """Return original + the deltas in fp32 or wider."""
    result = original.to(wide(original.dtype), copy=True)
    for delta in deltas:
        result += delta
    return result


def sum_low_rank(weight_OI: Tensor, factors: tuple[Tensor, Tensor, float]) -> Tensor:
    """Return W + scaling * B A, summed in fp32 or wider and rounded once to W's dtype, contiguous as W is.

    What `add_low_rank` does, without the report on rounding, which takes as long again.
    """
    a_RI, b_OR, scaling = factors
    if weight_OI.stride(0) < weight_OI.stride(1):
        return sum_low_rank(weight_OI.t(), (b_OR.t(), a_RI.t(), scaling)).t()
    wider = wide(weight_OI.dtype)
    a_RI, b_OR = a_RI.detach().to(wider), b_OR.detach().to(wider) * scaling
    result_OI = torch.empty_like(weight_OI)
    rows = max(1, 4 * _BLOCK // max(1, weight_OI.shape[1]))
    sums = torch.empty(rows, weight_OI.shape[1], dtype=wider, device=weight_OI.device)
    for start in range(0, weight_OI.shape[0], rows):
        block_OI = weight_OI[start : start + rows]
        part = sums[: len(block_OI)].copy_(block_OI).addmm_(b_OR[start : start + rows], a_RI)
        result_OI[start : start + rows] = part
    return result_OI


def add_low_rank(
    weight_OI: Tensor, factors: tuple[Tensor, Tensor, float], dtype: torch.dtype, rounding: Rounding
) -> tuple[Tensor, Tensor]:
    """Return (W + scaling * B A in `dtype`, the Frobenius norm of what rounding changed).

    A few rows at a time, so that the sum in fp32 never leaves the cache: neither it nor the delta is ever
    held whole. A matrix that lies by columns, as an embedding's does, is walked by columns.
    """
    a_RI, b_OR, scaling = factors
    if weight_OI.stride(0) < weight_OI.stride(1):
        result_IO, missed = add_low_rank(weight_OI.t(), (b_OR.t(), a_RI.t(), scaling), dtype, rounding)
        return result_IO.t(), missed
    wider = wide(weight_OI.dtype)
    a_RI, b_OR = a_RI.detach().to(wider), b_OR.detach().to(wider) * scaling
    result_OI = torch.empty(weight_OI.shape, dtype=dtype, device=weight_OI.device)
    missed = torch.zeros((), dtype=wider, device=weight_OI.device)
    rows = max(1, _BLOCK // max(1, weight_OI.shape[1]))
    for start in range(0, weight_OI.shape[0], rows):
        block = slice(start, start + rows)
        sums = (b_OR[block] @ a_RI).add_(weight_OI[block])  # in this order W is rounded once
        result_OI[block] = round_randomly(sums, dtype) if rounding == "stochastic" else sums
        missed += sums.sub_(result_OI[block]).square_().sum()
    return result_OI, missed.sqrt_()


def round_randomly(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return fp32 `values` rounded up or down to numbers of `dtype`, each with a chance that keeps the mean.

    A number x between neighbours l < u becomes u with probability (x - l) / (u - l), so the mean of what it
    becomes is x (Gupta et al. 2015, arXiv 1502.02551, eq. 1). Chance comes from torch's global generator.
    """
    if dtype not in _FRACTION_BITS:
        return values.to(dtype)
    bits, lowest = _FRACTION_BITS[dtype]
    exponents = torch.frexp(values).exponent.sub_(1).clamp_min_(lowest)
    quanta = torch.ldexp(torch.ones_like(values), exponents - bits)
    steps = values / quanta
    below = steps.floor()
    below += torch.rand_like(below) < steps - below
    return below.mul_(quanta).to(dtype)


def check_rounding(rounding: str) -> None:
    """Raise ConfigError unless `rounding` is one of `Rounding`."""
    known = get_args(Rounding)
    if rounding not in known:
        raise ConfigError(
            f"rounding is {rounding!r}; expected {', '.join(known)}.{did_you_mean(rounding, known)}"
        )


def finite(merged: nn.Parameter, names: Sequence[str]) -> nn.Parameter:
    """Return `merged`. Raises AdapterError if some of its numbers are not finite."""
    if merged.dtype.is_floating_point:
        check_finite(merged, names)
    return merged


def check_finite(numbers: Tensor, names: Sequence[str]) -> None:
    """Raise AdapterError, which names the adapters merged, unless all numbers are finite."""
    if not torch.isfinite(numbers).all():
        raise AdapterError(
            f"merging {', '.join(names)} gives weights that are not finite; nothing was changed."
        )
