"""Causal attention over documents that stand one behind the other, each of which sees only itself.

Nothing is computed for pairs of tokens of two documents, and no mask as large as all pairs is made.

Shape key: T tokens of all documents, H heads, G heads of keys and values (H = G * R), D head size.
"""

import functools
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BOUNDS", "document_attention"]

BOUNDS = "cu_seq_lens_q"
"""The keyword by which a transformers model hands on to its attention where documents begin."""

_BLOCK = 128
"""Queries computed at once: keys behind the last of them are left out."""
_STEP = 16
"""Lengths are rounded up to this, since oneDNN makes a kernel for every new shape."""
_SCORES = 1 << 19
"""Scores held at once, which should stay in the processor's cache."""


def document_attention(
    q_HTD: Tensor,
    k_GTD: Tensor,
    v_GTD: Tensor,
    bounds: Sequence[int] | Tensor,
    scale: float,
    *,
    window: int = 0,
    dropout: float = 0.0,
) -> Tensor:
    """Return softmax(scale q k^T) v, [H, T, D], where a token sees those of its document up to itself.

    Args:
        bounds: where the documents begin, and T: rising numbers from 0.
        window: a token sees this many tokens, itself one of them; 0 is all.
        dropout: the probability with which a token is not seen after all.

    In bfloat16 on a CPU without matrix tiles (AMX), whose fused kernel takes three times as long, the scores
    are made a block at a time, and again in the backward pass; they are rounded to bfloat16 before the
    softmax, as by the plain formula. Elsewhere each document goes through torch's fused kernel.
    """
    bounds = bounds.tolist() if isinstance(bounds, Tensor) else bounds
    if _blockwise(q_HTD) and not dropout:
        out_THD: Tensor = _BlockAttention.apply(  # type: ignore[no-untyped-call]
            q_HTD, k_GTD, v_GTD, tuple(bounds), scale, window
        )
        return out_THD.transpose(0, 1)
    lengths = [stop - start for start, stop in pairwise(bounds)]
    parts = zip(*(tensor.split(lengths, 1) for tensor in (q_HTD, k_GTD, v_GTD)), strict=True)
    return torch.cat([_fused(q, k, v, scale, window, dropout) for q, k, v in parts], 1)


def _fused(q_HTD: Tensor, k_GTD: Tensor, v_GTD: Tensor, scale: float, window: int, dropout: float) -> Tensor:
    length = q_HTD.shape[1]
    narrow = 0 < window < length
    allowed = None
    if narrow:
        allowed = torch.ones(length, length, dtype=torch.bool, device=q_HTD.device).tril().triu(1 - window)
    out: Tensor = F.scaled_dot_product_attention(
        q_HTD[None],
        k_GTD[None],
        v_GTD[None],
        allowed,
        dropout,
        is_causal=not narrow,
        scale=scale,
        enable_gqa=q_HTD.shape[0] != k_GTD.shape[0],
    )
    return out[0]


def _blockwise(q_HTD: Tensor) -> bool:
    return q_HTD.device.type == "cpu" and q_HTD.dtype == torch.bfloat16 and not _has_tiles()


@functools.cache
def _has_tiles() -> bool:
    return torch.cpu._is_amx_tile_supported()


def _documents(bounds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, the length rounded up) of each document."""
    for start, stop in pairwise(bounds):
        yield start, stop, -(-(stop - start) // _STEP) * _STEP


def _filled_up(tensor: Tensor, start: int, stop: int, length: int) -> Tensor:
    """Return the tokens of a document, [..., T, D], contiguous, with zeros behind them.

    Those its own tokens do not see, as they are later.
    """
    own = tensor[..., start:stop, :]
    return own.contiguous() if stop - start == length else F.pad(own, (0, 0, 0, length - (stop - start)))


def _head_groups(heads: int, shared: int, length: int) -> Iterator[slice]:
    """Yield slices of the G heads, so few at a time that their scores fit the cache."""
    step = max(1, _SCORES // (shared * min(_BLOCK, length) * length))
    for start in range(0, heads, step):
        yield slice(start, start + step)


@functools.lru_cache(16)
def _bias(start: int, stop: int, shared: int, window: int, dtype: torch.dtype) -> Tensor:
    """Return 0 where queries [start, stop) may see keys [0, stop), else -inf; [shared * queries, keys]."""
    rows, columns = torch.arange(start, stop)[:, None], torch.arange(stop)
    hidden = columns > rows
    if window:
        hidden |= columns <= rows - window
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf")).repeat(shared, 1)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_HTD: Tensor,
        k_GTD: Tensor,
        v_GTD: Tensor,
        bounds: tuple[int, ...],
        scale: float,
        window: int,
    ) -> Tensor:
        heads, size = k_GTD.shape[0], v_GTD.shape[-1]
        shared = q_HTD.shape[0] // heads
        q_GRTD = q_HTD.unflatten(0, (heads, shared))
        out_THD = q_HTD.new_empty((q_HTD.shape[1], q_HTD.shape[0], size))
        out_GRTD = out_THD.transpose(0, 1).unflatten(0, (heads, shared))
        for start, stop, length in _documents(bounds):
            for group in _head_groups(heads, shared, length):
                q, keys, values = (_filled_up(t[group], start, stop, length) for t in (q_GRTD, k_GTD, v_GTD))
                for a in range(0, length, _BLOCK):
                    b = min(a + _BLOCK, length)
                    queries = q[:, :, a:b].flatten(1, 2)
                    p = _probabilities(queries, keys[:, :b], a, shared, scale, window)
                    end = min(start + b, stop)
                    found = torch.bmm(p, values[:, :b]).unflatten(1, (shared, b - a))
                    out_GRTD[group, :, start + a : end] = found[:, :, : end - start - a]
        ctx.save_for_backward(q_HTD, k_GTD, v_GTD)
        ctx.bounds, ctx.scale, ctx.window = bounds, scale, window
        return out_THD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
        q_HTD, k_GTD, v_GTD = ctx.saved_tensors
        heads = k_GTD.shape[0]
        shared = q_HTD.shape[0] // heads
        q_GRTD, grad_GRTD = (t.unflatten(0, (heads, shared)) for t in (q_HTD, grad_THD.transpose(0, 1)))
        # Laid out as the projections made them, with the heads of a token side by side.
        dq_HTD, dk_GTD, dv_GTD = (
            t.new_empty((t.shape[1], t.shape[0], t.shape[2])).transpose(0, 1) for t in (q_HTD, k_GTD, v_GTD)
        )
        dq_GRTD = dq_HTD.unflatten(0, (heads, shared))
        for start, stop, length in _documents(ctx.bounds):
            own = stop - start
            for group in _head_groups(heads, shared, length):
                given = (q_GRTD, grad_GRTD, k_GTD, v_GTD)
                q, grad, keys, values = (_filled_up(t[group], start, stop, length) for t in given)
                dk, dv = (torch.zeros_like(t, dtype=torch.float32) for t in (keys, values))
                for a in range(0, length, _BLOCK):
                    b = min(a + _BLOCK, length)
                    queries, grads = (t[:, :, a:b].flatten(1, 2) for t in (q, grad))
                    p = _probabilities(queries, keys[:, :b], a, shared, ctx.scale, ctx.window)
                    dv[:, :b] += torch.bmm(p.mT, grads)
                    ds = torch.bmm(grads, values[:, :b].mT)
                    ds = torch.ops.aten._softmax_backward_data(ds, p, -1, p.dtype)
                    dk[:, :b] += torch.bmm(ds.mT, queries)
                    found = torch.bmm(ds, keys[:, :b]).mul_(ctx.scale).unflatten(1, (shared, b - a))
                    dq_GRTD[group, :, start + a : min(start + b, stop)] = found[:, :, : own - a]
                dk_GTD[group, start:stop] = dk[:, :own].mul_(ctx.scale)
                dv_GTD[group, start:stop] = dv[:, :own]
        return dq_HTD, dk_GTD, dv_GTD, None, None, None


def _probabilities(
    queries: Tensor, keys: Tensor, start: int, shared: int, scale: float, window: int
) -> Tensor:
    bias = _bias(start, keys.shape[1], shared, window, queries.dtype)
    return torch.baddbmm(bias, queries, keys.mT, alpha=scale).softmax(-1)
