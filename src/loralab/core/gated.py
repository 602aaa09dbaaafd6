"""The gate of a feed-forward layer, which keeps two tensors for the backward pass where torch keeps three.

y = silu(g) * u    (Shazeer 2020, arXiv 2002.05202, eq. 5, between its products)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["silu_gated"]


def silu_gated(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, of their shape; silu(gate) is made again in the backward pass."""
    if torch.compiler.is_compiling():
        return F.silu(gate) * up
    result: Tensor = _SiluGated.apply(gate, up)  # type: ignore[no-untyped-call]
    return result


class _SiluGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)
