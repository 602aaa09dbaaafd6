"""Ways to mix tensors entry by entry: deltas, whose mix is no longer of low rank, or factors.

Shape key: I in, O out, N tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from loralab.core.adapter import Factors
from loralab.errors import ConfigError, did_you_mean

__all__ = ["MIXES", "Mix", "sign_conflict"]

MIXES = ("ties", "dare", "dare_ties", "magnitude_prune")
"""The methods that prune, to a density; "sum" does not."""

_METHODS = ("sum", *MIXES)
_MAJORITIES = ("total", "frequency")
_BLOCK = 1 << 21


@dataclass(frozen=True)
class Mix:
    """One way to mix tensors of one shape.

    sum: the weighted sum.
    magnitude_prune: the weighted sum of the largest entries, a share `density` of each tensor.
    dare: the weighted sum of tensors in which each entry stays with probability `density`; what stays is
        divided by it, so that the sum is right on average (Yu et al. 2024, arXiv 2311.03099).
    ties: each tensor is trimmed to its largest entries; at each entry a sign is elected, and the weighted
        entries of that sign are averaged (Yadav et al. 2023, arXiv 2306.01708).
    dare_ties: TIES with DARE's random drop in place of the trim.

    Raises:
        ConfigError: an unknown word, or a density that is missing, out of range or of no use.
    """

    method: str = "sum"
    density: float | None = None
    majority: str = "total"
    """How ties elects a sign: that of the entries' sum ("total"), or of most entries ("frequency")."""
    generator: Generator | None = None
    """Where dare's draws come from; None is torch's own."""

    def __post_init__(self) -> None:
        for word, known in ((self.method, _METHODS), (self.majority, _MAJORITIES)):
            if word not in known:
                raise ConfigError(
                    f"unknown way to mix {word!r}; known are {', '.join(known)}.{did_you_mean(word, known)}"
                )
        if (self.density is None) != (self.method == "sum"):
            which = "has no density" if self.method == "sum" else "needs a density, the share of entries kept"
            raise ConfigError(f"method {self.method!r} {which}.")
        if self.density is not None and not 0 < self.density <= 1:
            raise ConfigError(f"density is {self.density}; expected a share above 0, up to 1.")

    def __call__(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Return the mix of the tensors, in their shape."""
        kept = [self._pruned(tensor) for tensor in tensors]
        weighted = torch.stack([tensor * weight for tensor, weight in zip(kept, weights, strict=True)])
        if self.method not in ("ties", "dare_ties"):
            return weighted.sum(0)
        stack = torch.stack(kept)
        votes = (stack.sign() if self.majority == "frequency" else stack).sum(0)
        agrees = stack.sign() == torch.where(votes >= 0, 1.0, -1.0)
        return (weighted * agrees).sum(0) / agrees.sum(0).clamp_min(1)

    def _pruned(self, tensor: Tensor) -> Tensor:
        if self.density is None or self.density == 1:
            return tensor
        if self.method in ("dare", "dare_ties"):
            drawn = torch.bernoulli(torch.full_like(tensor, self.density), generator=self.generator)
            return tensor * drawn / self.density
        kept = torch.zeros_like(tensor).flatten()
        chosen = tensor.abs().flatten().topk(int(self.density * tensor.numel())).indices
        kept[chosen] = tensor.flatten()[chosen]
        return kept.view_as(tensor)


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
