"""Products and sums of low-rank factors. Shape key: I in, O out, R rank."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["joined", "product", "wide"]


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which deltas are computed: fp32, or wider for a wider input."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else torch.float32


def product(a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
    """Return scaling * B A, shape [O, I], in fp32 or wider, without a gradient."""
    dtype = wide(a_RI.dtype)
    return (b_OR.detach().to(dtype) @ a_RI.detach().to(dtype)).mul_(scaling)


def joined(factors: Sequence[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor, float]:
    """Return one (A, B, scaling) whose scaling * B A is the sum of all the given ones.

    Low-rank deltas add by concatenation along the rank: [B1 B2] [A1; A2] = B1 A1 + B2 A2.
    """
    if len(factors) == 1:
        return factors[0]
    a_RI = torch.cat([a for a, _, _ in factors])
    b_OR = torch.cat([b * scaling for _, b, scaling in factors], dim=1)
    return a_RI, b_OR, 1.0
