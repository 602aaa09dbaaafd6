"""Root-mean-square normalization that keeps its input and one number a token for the backward pass.

y = w * x / sqrt(mean(x^2) + eps)    (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4)

Shape key: T tokens, I width.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["rms_norm"]

_BLOCK = 1 << 18
"""Numbers held in fp32 at a time."""


def rms_norm(x: Tensor, weight_I: Tensor, eps: float) -> Tensor:
    """Return x, [..., I], normalized in fp32, rounded to its dtype, then scaled by a weight without gradient.

    Written in plain operations, it keeps x and two more tensors of its size in fp32; a compiler, which gets
    those, does not.
    """
    if torch.compiler.is_compiling():
        wide = x.float()
        return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype) * weight_I
    result: Tensor = _RMSNorm.apply(x, weight_I, eps)  # type: ignore[no-untyped-call]
    return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_I: Tensor, eps: float) -> Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        out = x.new_empty(x.shape)
        out_TI = out.view(x_TI.shape)
        inverse_T1 = x_TI.new_empty((len(x_TI), 1), dtype=torch.float32)
        for block in _blocks(x_TI):
            wide = x_TI[block].float()
            inverse = wide.square().mean(1, keepdim=True).add_(eps).rsqrt_()
            inverse_T1[block] = inverse
            out_TI[block] = (wide * inverse).to(x.dtype).mul_(weight_I)
        ctx.save_for_backward(x_TI, weight_I, inverse_T1)
        ctx.shape = x.shape
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x_TI, weight_I, inverse_T1 = ctx.saved_tensors
        grad_TI = grad.reshape(x_TI.shape)
        out_TI = torch.empty_like(x_TI)
        for block in _blocks(x_TI):
            inverse = inverse_T1[block]
            normal = x_TI[block].float() * inverse
            scaled = (grad_TI[block] * weight_I).float()
            along = (scaled * normal).mean(1, keepdim=True)
            out_TI[block] = scaled.addcmul_(normal, along, value=-1).mul_(inverse)
        return out_TI.view(ctx.shape), None, None


def _blocks(x_TI: Tensor) -> list[slice]:
    """Return slices of the rows: on a CPU a few at a time, which stay in its cache."""
    step = max(1, _BLOCK // x_TI.shape[1]) if x_TI.device.type == "cpu" else max(1, len(x_TI))
    return [slice(start, start + step) for start in range(0, len(x_TI), step)]
