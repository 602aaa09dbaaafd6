"""The LoRA linear as one autograd function, for all the linear layers that share an input.

h = W x + b + s * B A drop(x)    (Hu et al. 2021, arXiv 2106.09685, eq. 3)

Shape key: B rows, T tokens (all leading sizes flattened), I in, O out, R rank; S the ranks of all layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loralab.core.algebra import padded
from loralab.core.dropout import Mask, draw_seed, drop, kept
from loralab.core.products import add_times_, times

__all__ = ["Base", "Factors", "Segment", "lora_linears", "low_rank", "low_rank_rows"]

Factors = tuple[Tensor, Tensor, float]
"""(a_RI, b_OR, scaling)."""
Base = tuple[Tensor, Tensor | None]
"""(weight_OI, bias_O)."""


@dataclass(frozen=True)
class Segment:
    """Tokens one behind the other, and what each layer adds for them."""

    factors: tuple[Factors, ...]
    """Of every layer; none for the base alone."""
    dropout: float = 0.0
    tokens: int | None = None
    """None: all there are."""


def lora_linears(x: Tensor, bases: Sequence[Base], segments: Sequence[Segment]) -> tuple[Tensor, ...]:
    """Return W x + bias + scaling * B A drop(x) of each layer, in the dtype of the base's product.

    All layers read one x: its product with all their A is one, and what is dropped of it is dropped for all.
    A and B may be of any floating dtype; they are cast to that of x, or a smaller x to theirs, so a large x
    is never copied to another precision. For the backward pass x is saved once, with the [T, S] product A x;
    what dropout took is found again from its seed. A weight or bias that requires no gradient gets none.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        cast = [(weight.to(dtype), None if bias is None else bias.to(dtype)) for weight, bias in bases]
        with torch.autocast(device, enabled=False):
            return lora_linears(x.to(dtype), cast, segments)
    if torch.compiler.is_compiling():
        return _in_plain_operations(x, bases, segments)
    seeds = tuple(_seed(segment.dropout) for segment in segments)
    if not torch.is_grad_enabled():
        # In the base's own way, so that an adapter that is still zero changes no bit.
        outs_TO = _computed(F.linear, x, bases, segments, seeds)[0]
        return tuple(out.view(*x.shape[:-1], out.shape[1]) for out in outs_TO)
    plan = tuple(
        (segment.tokens, segment.dropout, seed, tuple(scaling for _, _, scaling in segment.factors))
        for segment, seed in zip(segments, seeds, strict=True)
    )
    factors = [tensor for segment in segments for a, b, _ in segment.factors for tensor in (a, b)]
    outs_TO = _LoraLinears.apply(  # type: ignore[no-untyped-call]
        plan, len(bases), x, *(tensor for base in bases for tensor in base), *factors
    )
    # Not in the function: what it returns may be changed in place, as by a ReLU, unless it is a view.
    return tuple(out.view(*x.shape[:-1], out.shape[1]) for out in outs_TO)


def _in_plain_operations(x: Tensor, bases: Sequence[Base], segments: Sequence[Segment]) -> tuple[Tensor, ...]:
    """Return the same for a compiler, which sees through it and chooses what the backward pass keeps."""
    x_TI = x.reshape(-1, x.shape[-1])
    counts = [len(x_TI) if segment.tokens is None else segment.tokens for segment in segments]
    pieces = x_TI.split(counts) if len(counts) > 1 else (x_TI,)
    dropped = [F.dropout(piece, s.dropout) for piece, s in zip(pieces, segments, strict=True)]
    outs = []
    for index, (weight_OI, bias_O) in enumerate(bases):
        terms = []
        for piece, segment in zip(dropped, segments, strict=True):
            if segment.factors:
                a_RI, b_OR, scaling = segment.factors[index]
                terms.append(piece @ a_RI.to(x.dtype).t() @ b_OR.to(x.dtype).t() * scaling)
            else:
                terms.append(piece.new_zeros(len(piece), len(weight_OI)))
        term_TO = terms[0] if len(terms) == 1 else torch.cat(terms)
        outs.append((F.linear(x_TI, weight_OI, bias_O) + term_TO).view(*x.shape[:-1], len(weight_OI)))
    return tuple(outs)


def low_rank(x: Tensor, factors: Factors, dropout: float = 0.0) -> Tensor:
    """Return scaling * B A drop(x) alone, for a base output that was computed elsewhere."""
    a_RI, b_OR, scaling = factors
    dropped, _, factor = _dropped(x, dropout, _seed(dropout))
    dtype = _least_cast(x, a_RI)
    low = (dropped.to(dtype) @ a_RI.to(dtype).t() @ b_OR.to(dtype).t()) * (scaling * factor)
    return low if dtype == x.dtype else low.to(x.dtype)


def low_rank_rows(x_BTI: Tensor, factors: Sequence[Factors], dropout: float = 0.0) -> Tensor:
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


def _side_by_side(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _places(counts: Sequence[int | None], tokens: int) -> list[slice]:
    """Return where the segments are."""
    places, start = [], 0
    for count in counts:
        stop = tokens if count is None else start + count
        places.append(slice(start, stop))
        start = stop
    return places


def _seed(dropout: float) -> int:
    """Return a seed for what goes; where nothing does, none is drawn."""
    return draw_seed() if dropout > 0 else 0


def _dropped(x: Tensor, dropout: float, seed: int) -> tuple[Tensor, Mask | None, float]:
    """Return (x without what goes, the mask, its factor)."""
    mask = kept(x, dropout, seed) if dropout > 0 else None
    return (x, None, 1.0) if mask is None else (mask.of(x), mask, mask.factor)


def _computed(
    multiply: Callable[..., Tensor],
    x: Tensor,
    bases: Sequence[Base],
    segments: Sequence[Segment],
    seeds: Sequence[int],
) -> tuple[tuple[Tensor, ...], Tensor, list[Tensor]]:
    """Return the outputs, [T, O], x as [T, I] and A drop(x), [T, S], of each segment that has factors."""
    x_TI = x.reshape(-1, x.shape[-1])
    outs_TO = [multiply(x_TI, weight, bias) for weight, bias in bases]
    lows_TS = []
    places = _places([segment.tokens for segment in segments], len(x_TI))
    for segment, place, seed in zip(segments, places, seeds, strict=True):
        if not segment.factors:
            continue
        a_SI = _side_by_side([a for a, _, _ in segment.factors], 0)
        dtype = _least_cast(x_TI[place], a_SI)
        dropped, _, factor = _dropped(x_TI[place], segment.dropout, seed)
        low_TS = dropped.to(dtype) @ a_SI.to(dtype).t()
        if factor != 1:
            low_TS.mul_(factor)
        parts = low_TS.split([len(a) for a, _, _ in segment.factors], 1)
        for out, low_TR, (_, b_OR, scaling) in zip(outs_TO, parts, segment.factors, strict=True):
            if dtype == out.dtype:
                out[place].addmm_(low_TR, b_OR.to(dtype).t(), alpha=scaling)
            else:
                out[place].add_(low_TR @ b_OR.to(dtype).t(), alpha=scaling)
        lows_TS.append(low_TS)
    return tuple(outs_TO), x_TI, lows_TS


class _LoraLinears(torch.autograd.Function):
    """apply(plan, layers, x, W and bias of each layer, A and B of each segment's layers)."""

    @staticmethod
    def forward(ctx: Any, plan: Any, layers: int, x: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        bases = list(zip(tensors[0 : 2 * layers : 2], tensors[1 : 2 * layers : 2], strict=True))
        rest = iter(tensors[2 * layers :])
        segments = [
            Segment(tuple((next(rest), next(rest), scaling) for scaling in scalings), dropout, tokens)
            for tokens, dropout, _, scalings in plan
        ]
        outs, x_TI, lows_TS = _computed(times, x, bases, segments, [seed for _, _, seed, _ in plan])
        weights = [weight for weight, _ in bases]
        ctx.save_for_backward(x_TI, *weights, *tensors[2 * layers :], *(low.to(x.dtype) for low in lows_TS))
        ctx.plan, ctx.layers, ctx.shape = plan, layers, x.shape
        ctx.set_materialize_grads(False)
        return outs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads_TO: Tensor | None) -> tuple[Tensor | None, ...]:
        x_TI, *saved = ctx.saved_tensors
        layers, need = ctx.layers, ctx.needs_input_grad[2:]
        weights = saved[:layers]
        grad_x = _through(grads_TO, weights, x_TI) if need[0] else None
        of_bases: list[Tensor | None] = []
        for grad, need_weight, need_bias in zip(grads_TO, need[1::2], need[2::2], strict=False):
            of_bases.append(grad.t() @ x_TI if need_weight and grad is not None else None)
            of_bases.append(grad.sum(0) if need_bias and grad is not None else None)
        count = len(ctx.needs_input_grad) - 3 - 2 * layers
        factors, lows = iter(saved[layers : layers + count]), iter(saved[layers + count :])
        of_factors: list[Tensor | None] = []
        places = _places([tokens for tokens, *_ in ctx.plan], len(x_TI))
        for (_, dropout, seed, scalings), place in zip(ctx.plan, places, strict=True):
            if not scalings:
                continue
            own = [(next(factors), next(factors), scaling) for scaling in scalings]
            of_outputs = [None if grad is None else grad[place] for grad in grads_TO]
            into = None if grad_x is None else grad_x[place]
            of_factors += _segment_backward(
                Segment(tuple(own), dropout), seed, x_TI[place], next(lows), of_outputs, into
            )
        grad_x = None if grad_x is None else grad_x.view(ctx.shape)
        return None, None, grad_x, *of_bases, *of_factors


def _through(grads_TO: Sequence[Tensor | None], weights: Sequence[Tensor], x_TI: Tensor) -> Tensor:
    """Return the gradient that reaches x through the weights."""
    grad_x: Tensor | None = None
    for grad, weight_OI in zip(grads_TO, weights, strict=True):
        if grad is not None:
            across = weight_OI.t()
            grad_x = times(grad, across) if grad_x is None else add_times_(grad_x, grad, across)
    return torch.zeros_like(x_TI) if grad_x is None else grad_x


def _segment_backward(
    segment: Segment,
    seed: int,
    x_TI: Tensor,
    low_TS: Tensor,
    grads_TO: Sequence[Tensor | None],
    grad_x_TI: Tensor | None,
) -> list[Tensor | None]:
    """Return the gradients of A and B of each layer, and add to `grad_x_TI` what reaches x through them."""
    dtype = x_TI.dtype
    a_SI = _side_by_side([a for a, _, _ in segment.factors], 0).to(dtype)
    ranks = [len(a) for a, _, _ in segment.factors]
    parts, of_b = [], []
    for grad, low_TR, (_, b_OR, scaling) in zip(
        grads_TO, low_TS.split(ranks, 1), segment.factors, strict=True
    ):
        if grad is None:
            parts.append(torch.zeros_like(low_TR))
            of_b.append(torch.zeros_like(b_OR))
        else:
            parts.append((grad @ b_OR.to(dtype)).mul_(scaling))
            of_b.append((low_TR.t() @ grad).t().to(b_OR.dtype).mul_(scaling))
    grad_low_TS = _side_by_side(parts, 1)
    dropped, mask, factor = _dropped(x_TI, segment.dropout, seed)
    if grad_x_TI is not None:
        if mask is None:
            grad_x_TI.addmm_(grad_low_TS, a_SI)
        else:
            grad_x_TI.add_(mask.of_(grad_low_TS @ a_SI), alpha=factor)
    of_a = (grad_low_TS.t() @ dropped).mul_(factor).split(ranks, 0)
    own = zip(of_a, of_b, segment.factors, strict=True)
    return [grad for grad_a, grad_b, (a, _, _) in own for grad in (grad_a.to(a.dtype), grad_b)]
