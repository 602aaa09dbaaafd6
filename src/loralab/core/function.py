"""The LoRA linear as one autograd function.

h = W x + b + s * B A drop(x)    (Hu et al. 2021, arXiv 2106.09685, eq. 3)

Shape key: T tokens (all leading sizes flattened), I in, O out, R rank.
"""

from typing import Any

import torch
from torch import Tensor

from loralab.core.dropout import draw_seed, drop

__all__ = ["lora_linear", "low_rank"]


def lora_linear(
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    factors: tuple[Tensor, Tensor, float],
    dropout: float = 0.0,
) -> Tensor:
    """Return W x + bias + scaling * B A drop(x), in the dtype of the base's product.

    `factors` is (a_RI, b_OR, scaling). A and B may be of any floating dtype; they are cast to that of x,
    which is little work, so x itself is never copied to another precision. For the backward pass x is saved
    once, with the [T, R] product A x; the dropout mask is made again from its seed. A weight or bias that
    requires no gradient gets none.
    """
    a_RI, b_OR, scaling = factors
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight_OI = x.to(dtype), weight_OI.to(dtype)
        bias_O = None if bias_O is None else bias_O.to(dtype)
    seed = draw_seed() if dropout > 0 else 0
    with torch.autocast(x.device.type, enabled=False):
        result: Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
            x, weight_OI, bias_O, a_RI, b_OR, scaling, dropout, seed
        )
    return result


def low_rank(x: Tensor, factors: tuple[Tensor, Tensor, float], dropout: float = 0.0) -> Tensor:
    """Return scaling * B A drop(x) alone, for a base output that was computed elsewhere."""
    a_RI, b_OR, scaling = factors
    dropped = drop(x, dropout, draw_seed()) if dropout > 0 else x
    return (dropped @ a_RI.to(x.dtype).t() @ b_OR.to(x.dtype).t()) * scaling


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        scaling: float,
        dropout: float,
        seed: int,
    ) -> Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        a, b = a_RI.to(x.dtype), b_OR.to(x.dtype)
        low_TR = drop(x_TI, dropout, seed) @ a.t()
        out_TO = torch.nn.functional.linear(x_TI, weight_OI, bias_O)
        out_TO.addmm_(low_TR, b.t(), alpha=scaling)
        ctx.save_for_backward(x_TI, weight_OI, a_RI, b_OR, low_TR)
        ctx.scaling, ctx.dropout, ctx.seed, ctx.shape = scaling, dropout, seed, x.shape
        return out_TO.view(*x.shape[:-1], weight_OI.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_OI, a_RI, b_OR, low_TR = ctx.saved_tensors
        need_x, need_weight, need_bias, need_a, need_b = ctx.needs_input_grad[:5]
        grad_TO = grad.reshape(-1, grad.shape[-1])
        a, b = a_RI.to(x_TI.dtype), b_OR.to(x_TI.dtype)
        grad_low_TR = grad_TO @ b
        grad_x = grad_a = grad_b = grad_weight = grad_bias = None
        if need_x:
            grad_x = grad_TO @ weight_OI
            if ctx.dropout > 0:
                grad_x.add_(drop(grad_low_TR @ a, ctx.dropout, ctx.seed), alpha=ctx.scaling)
            else:
                grad_x.addmm_(grad_low_TR, a, alpha=ctx.scaling)
            grad_x = grad_x.view(ctx.shape)
        if need_a:
            dropped_TI = drop(x_TI, ctx.dropout, ctx.seed)
            grad_a = (grad_low_TR.t() @ dropped_TI).to(a_RI.dtype).mul_(ctx.scaling)
        if need_b:
            grad_b = (grad_TO.t() @ low_TR).to(b_OR.dtype).mul_(ctx.scaling)
        if need_weight:
            grad_weight = grad_TO.t() @ x_TI
        if need_bias:
            grad_bias = grad_TO.sum(0)
        return grad_x, grad_weight, grad_bias, grad_a, grad_b, None, None, None
