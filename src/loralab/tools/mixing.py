"""Ways to mix deltas entry by entry. The result is no longer of low rank.

Shape key: I in, O out, N adapters.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from loralab.core.adapter import Factors

__all__ = ["MIXES", "Mix", "sign_conflict"]

Mix = Callable[[Sequence[Tensor], Sequence[float], float, Generator], Tensor]
"""(deltas [O, I], their weights, the density, where chance comes from) -> the mixed delta [O, I]."""

_BLOCK = 1 << 21


def magnitude_prune(
    deltas: Sequence[Tensor], weights: Sequence[float], density: float, generator: Generator
) -> Tensor:
    """Return the weighted sum of the deltas' largest entries, a share `density` of each."""
    return _weighted([_largest(delta, density) for delta in deltas], weights).sum(0)


def dare(deltas: Sequence[Tensor], weights: Sequence[float], density: float, generator: Generator) -> Tensor:
    """Return the weighted sum of deltas in which each entry stays with probability `density`.

    What stays is divided by `density`, so that the sum is right on average (Yu et al. 2024, arXiv
    2311.03099, "drop and rescale").
    """
    return _weighted([_drawn(delta, density, generator) for delta in deltas], weights).sum(0)


def ties(deltas: Sequence[Tensor], weights: Sequence[float], density: float, generator: Generator) -> Tensor:
    """Return TIES (Yadav et al. 2023, arXiv 2306.01708): trim to the largest entries, elect a sign, merge.

    At each entry the sign of the sum of the trimmed deltas wins, and the weighted deltas of that sign are
    averaged.
    """
    return _disjoint_mean([_largest(delta, density) for delta in deltas], weights)


def dare_ties(
    deltas: Sequence[Tensor], weights: Sequence[float], density: float, generator: Generator
) -> Tensor:
    """Return TIES with DARE's random drop in place of the trim."""
    return _disjoint_mean([_drawn(delta, density, generator) for delta in deltas], weights)


MIXES: dict[str, Mix] = {
    "ties": ties,
    "dare": dare,
    "dare_ties": dare_ties,
    "magnitude_prune": magnitude_prune,
}


def sign_conflict(deltas: Sequence[Factors]) -> float:
    """Return the share of entries at which two of the deltas have opposite signs, a few rows at a time."""
    if len(deltas) < 2:
        return 0.0
    rows, columns = deltas[0].b_OR.shape[0], deltas[0].a_RI.shape[1]
    step = max(1, _BLOCK // columns)
    against = 0
    for start in range(0, rows, step):
        block = [(f.b_OR[start : start + step].float() @ f.a_RI.float()).mul_(f.scaling) for f in deltas]
        stack_NOI = torch.stack(block)
        against += int(((stack_NOI > 0).any(0) & (stack_NOI < 0).any(0)).sum())
    return against / (rows * columns)


def _largest(delta_OI: Tensor, density: float) -> Tensor:
    count = int(density * delta_OI.numel())
    kept = torch.zeros_like(delta_OI).flatten()
    chosen = delta_OI.abs().flatten().topk(count).indices
    kept[chosen] = delta_OI.flatten()[chosen]
    return kept.view_as(delta_OI)


def _drawn(delta_OI: Tensor, density: float, generator: Generator) -> Tensor:
    draws = torch.rand(delta_OI.shape, generator=generator, device=generator.device)
    return torch.where(draws.to(delta_OI.device) < density, delta_OI / density, 0)


def _weighted(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([delta * weight for delta, weight in zip(deltas, weights, strict=True)])


def _disjoint_mean(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    stack_NOI = torch.stack(list(deltas))
    elected_OI = torch.where(stack_NOI.sum(0) >= 0, 1.0, -1.0)
    agrees_NOI = stack_NOI.sign() == elected_OI
    total_OI = (_weighted(deltas, weights) * agrees_NOI).sum(0)
    return total_OI / agrees_NOI.sum(0).clamp_min(1)
