"""Products and sums of low-rank factors. Shape key: I in, O out, R rank."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["joined", "norm", "padded", "product", "wide"]


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which deltas are computed: fp32, or wider for a wider input."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else torch.float32


def product(a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
    """Return scaling * B A, shape [O, I], in fp32 or wider, without a gradient."""
    dtype = wide(a_RI.dtype)
    return (b_OR.detach().to(dtype) @ a_RI.detach().to(dtype)).mul_(scaling)


def joined(factors: Sequence[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor, float]:
    """Return one (A, B, scaling) whose scaling * B A is the sum of all the given ones.

    Low-rank deltas add by concatenation along the rank: [B1 B2] [A1; A2] = B1 A1 + B2 A2. A scaling that is
    a tensor, so that compiled code can take another value, goes into B.
    """
    scaling = factors[0][2]
    alike = not any(isinstance(own, Tensor) or own != scaling for _, _, own in factors)
    if len(factors) == 1 and alike:
        return factors[0]
    a_RI = torch.cat([a for a, _, _ in factors])
    b_OR = torch.cat([b if alike else b * own for _, b, own in factors], dim=1)
    return a_RI, b_OR, scaling if alike else 1.0


def padded(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor in a larger shape, zeros behind it in every direction."""
    if tuple(tensor.shape) == shape:
        return tensor
    result = tensor.new_zeros(shape)
    result[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return result


def norm(factors: tuple[Tensor, Tensor, float]) -> Tensor:
    """Return the Frobenius norm of scaling * B A without building it: |B A|^2 = <B^T B, A A^T>."""
    a_RI, b_OR = (factor.detach().double() for factor in factors[:2])
    return ((b_OR.t() @ b_OR) * (a_RI @ a_RI.t())).sum().clamp_min(0).sqrt() * abs(factors[2])
