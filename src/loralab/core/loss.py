"""The output head and its cross-entropy as one function that never holds all the scores.

Shape key: N tokens, I width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from loralab.core.products import times

__all__ = ["head_loss"]

_BLOCK = 1 << 22
"""The scores that are held at a time: 16 MB in fp32."""


def head_loss(
    hidden_NI: Tensor,
    weight_VI: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    weights_N: Tensor,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the weighted sum of -log softmax(W h + b)[target], in fp32.

    With `smoothing` that share of the target is spread evenly over the vocabulary (Szegedy et al. 2015,
    arXiv 1512.00567, section 7).

    The scores of some tokens at a time are made, turned into their loss and its gradient, and dropped, so the
    memory is that of the gradient of h; the backward pass has only to scale it. (After Wijmans et al. 2024,
    arXiv 2411.09009, section 3, in plain torch.)
    """
    with torch.autocast(hidden_NI.device.type, enabled=False):
        result: Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden_NI, weight_VI.to(hidden_NI.dtype), bias_V, targets_N, weights_N, smoothing
        )
    return result


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NI: Tensor,
        weight_VI: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        weights_N: Tensor,
        smoothing: float,
    ) -> Tensor:
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_NI = torch.empty_like(hidden_NI) if need_hidden else None
        grad_VI = torch.zeros_like(weight_VI, dtype=torch.float32) if need_weight else None
        grad_V = torch.zeros_like(bias_V, dtype=torch.float32) if need_bias and bias_V is not None else None
        loss = torch.zeros((), device=hidden_NI.device)
        bias = None if bias_V is None else bias_V.to(hidden_NI.dtype)
        rows = max(1, _BLOCK // weight_VI.shape[0])
        for start in range(0, hidden_NI.shape[0], rows):
            block = slice(start, start + rows)
            hidden, target, weight = hidden_NI[block], targets_N[block, None], weights_N[block, None].float()
            scores = times(hidden, weight_VI, bias).float()
            logsum = scores.logsumexp(1, keepdim=True)
            aimed = scores.gather(1, target)
            if smoothing:
                aimed = (1 - smoothing) * aimed + smoothing * scores.mean(1, keepdim=True)
            loss += ((logsum - aimed) * weight).sum()
            if not (need_hidden or need_weight or need_bias):
                continue
            scores.sub_(logsum).exp_()  # now the probabilities
            scores.sub_(smoothing / scores.shape[1])
            scores.scatter_add_(1, target, torch.full_like(weight, smoothing - 1.0))
            grad = scores.mul_(weight).to(hidden.dtype)
            if grad_NI is not None:
                grad_NI[block] = times(grad, weight_VI.t())
            if grad_VI is not None:
                grad_VI += grad.t() @ hidden
            if grad_V is not None:
                grad_V += grad.sum(0)
        ctx.save_for_backward(*(g for g in (grad_NI, grad_VI, grad_V) if g is not None))
        ctx.needs = tuple(g is not None for g in (grad_NI, grad_VI, grad_V))
        ctx.dtypes = (hidden_NI.dtype, weight_VI.dtype, None if bias_V is None else bias_V.dtype)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        scaled = [
            (next(saved).float() * grad).to(dtype) if needed else None
            for needed, dtype in zip(ctx.needs, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)
