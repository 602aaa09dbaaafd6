"""The LoRA linear as one autograd function.

h = W x + b + s * B A drop(x)    (Hu et al. 2021, arXiv 2106.09685, eq. 3)

Shape key: B rows, T tokens (all leading sizes flattened), I in, O out, R rank.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loralab.core.algebra import padded
from loralab.core.dropout import draw_seed, drop, kept, masked

__all__ = ["lora_linear", "low_rank", "low_rank_rows"]


def lora_linear(
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    factors: tuple[Tensor, Tensor, float],
    dropout: float = 0.0,
) -> Tensor:
    """Return W x + bias + scaling * B A drop(x), in the dtype of the base's product.

    `factors` is (a_RI, b_OR, scaling). A and B may be of any floating dtype; they are cast to that of x, or a
    smaller x to theirs, so a large x is never copied to another precision. For the backward pass x is saved
    once, with the [T, R] product A x; the dropout mask is made again from its seed. A weight or bias that
    requires no gradient gets none.
    """
    a_RI, b_OR, scaling = factors
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        bias_O = None if bias_O is None else bias_O.to(dtype)
        with torch.autocast(device, enabled=False):
            return lora_linear(x.to(dtype), weight_OI.to(dtype), bias_O, factors, dropout)
    seed = draw_seed() if dropout > 0 else 0
    if not torch.is_grad_enabled():
        return _computed(x, weight_OI, bias_O, a_RI, b_OR, scaling, dropout, seed)[0]
    result: Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
        x, weight_OI, bias_O, a_RI, b_OR, scaling, dropout, seed
    )
    return result


def low_rank(x: Tensor, factors: tuple[Tensor, Tensor, float], dropout: float = 0.0) -> Tensor:
    """Return scaling * B A drop(x) alone, for a base output that was computed elsewhere."""
    a_RI, b_OR, scaling = factors
    mask, factor = kept(x, dropout, draw_seed()) if dropout > 0 else (None, 1.0)
    dropped = x if mask is None else masked(x, mask)
    dtype = _least_cast(x, a_RI)
    low = (dropped.to(dtype) @ a_RI.to(dtype).t() @ b_OR.to(dtype).t()) * (scaling * factor)
    return low if dtype == x.dtype else low.to(x.dtype)


def low_rank_rows(
    x_BTI: Tensor, factors: Sequence[tuple[Tensor, Tensor, float]], dropout: float = 0.0
) -> Tensor:
    """Return scaling * B A drop(x), [B, T, O], where every row of the batch has factors of its own.

    Lower ranks are filled up with zeros.
    """
    rank = max(a_RI.shape[0] for a_RI, _, _ in factors)
    a_BRI = torch.stack([padded(a_RI, (rank, a_RI.shape[1])) for a_RI, _, _ in factors])
    b_BOR = torch.stack([padded(b_OR, (b_OR.shape[0], rank)) for _, b_OR, _ in factors])
    scaling_B = torch.tensor([scaling for _, _, scaling in factors], device=x_BTI.device)
    dropped = drop(x_BTI, dropout, draw_seed()) if dropout > 0 else x_BTI
    dtype = _least_cast(x_BTI[0], a_BRI[0])
    low_BTR = (dropped.to(dtype) @ a_BRI.to(dtype).mT) * scaling_B.to(dtype)[:, None, None]
    return low_BTR @ b_BOR.to(dtype).mT


def _least_cast(x: Tensor, a_RI: Tensor) -> torch.dtype:
    """Return the dtype in which to compute B A x: the factors are cast to that of x, which has more rows.

    Where it has not, as when a text is continued token by token, x is cast to factors of higher precision.
    """
    few = x.numel() <= a_RI.numel()
    return a_RI.dtype if few and a_RI.dtype.itemsize > x.dtype.itemsize else x.dtype


def _computed(
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    scaling: float,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, x as [T, I] and A drop(x), [T, R]."""
    x_TI = x.reshape(-1, x.shape[-1])
    dtype = _least_cast(x, a_RI)
    mask, factor = kept(x_TI, dropout, seed)
    low_TR = (x_TI if mask is None else masked(x_TI, mask)).to(dtype) @ a_RI.to(dtype).t()
    if mask is not None:
        low_TR.mul_(factor)
    out_TO = torch.nn.functional.linear(x_TI, weight_OI, bias_O)
    if dtype == out_TO.dtype:
        out_TO.addmm_(low_TR, b_OR.to(dtype).t(), alpha=scaling)
    else:
        out_TO.add_(low_TR @ b_OR.to(dtype).t(), alpha=scaling)
    return out_TO.view(*x.shape[:-1], weight_OI.shape[0]), x_TI, low_TR


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
        output, x_TI, low_TR = _computed(x, weight_OI, bias_O, a_RI, b_OR, scaling, dropout, seed)
        ctx.save_for_backward(x_TI, weight_OI, a_RI, b_OR, low_TR.to(x.dtype))
        ctx.scaling, ctx.dropout, ctx.seed, ctx.shape = scaling, dropout, seed, x.shape
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_OI, a_RI, b_OR, low_TR = ctx.saved_tensors
        need_x, need_weight, need_bias, need_a, need_b = ctx.needs_input_grad[:5]
        grad_TO = grad.reshape(-1, grad.shape[-1])
        a, b = a_RI.to(x_TI.dtype), b_OR.to(x_TI.dtype)
        grad_low_TR = grad_TO @ b
        grad_x = grad_a = grad_b = grad_weight = grad_bias = None
        mask, factor = kept(x_TI, ctx.dropout, ctx.seed) if need_x or need_a else (None, 1.0)
        scaling = ctx.scaling * factor
        if need_x:
            grad_x = grad_TO @ weight_OI
            if mask is None:
                grad_x.addmm_(grad_low_TR, a, alpha=scaling)
            else:
                grad_x.add_(masked(grad_low_TR @ a, mask), alpha=scaling)
            grad_x = grad_x.view(ctx.shape)
        if need_a:
            dropped_TI = x_TI if mask is None else masked(x_TI, mask)
            grad_a = (grad_low_TR.t() @ dropped_TI).to(a_RI.dtype).mul_(scaling)
        if need_b:
            grad_b = (grad_TO.t() @ low_TR).to(b_OR.dtype).mul_(ctx.scaling)
        if need_weight:
            grad_weight = grad_TO.t() @ x_TI
        if need_bias:
            grad_bias = grad_TO.sum(0)
        return grad_x, grad_weight, grad_bias, grad_a, grad_b, None, None, None
