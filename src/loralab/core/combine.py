"""Several products B A as one: their weighted sum, exactly, and the other ways in which people mix them.

Shape key: I in, O out, R rank.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from loralab.core.adapter import Factors
from loralab.core.mixing import Mix
from loralab.core.svd import Cut, LowRank, leading_svd, product_svd

__all__ = ["Term", "mixed_bias", "mixed_delta", "mixed_factors", "mixed_spectrum", "side_by_side"]

Term = tuple[Factors, float]
"""A delta, as factors, and its weight."""


def side_by_side(terms: Sequence[Term]) -> tuple[Tensor, Tensor]:
    """Return (a_RI, b_OR) whose product is the weighted sum of the deltas, in float64; R is the sum of ranks.

    [B1 B2] [w1 s1 A1; w2 s2 A2] = w1 s1 B1 A1 + w2 s2 B2 A2.
    """
    a_RI = torch.cat([f.a_RI.detach().double() * (weight * f.scaling) for f, weight in terms])
    return a_RI, torch.cat([f.b_OR.detach().double() for f, _ in terms], dim=1)


def mixed_factors(terms: Sequence[Term], mix: Mix) -> tuple[Tensor, Tensor]:
    """Return (a_RI, b_OR) with A's and B's mixed apart, each weighted by the root of weight * scaling.

    A negative product gives its sign to A. Even the sum of factors is not the sum of the deltas: products
    B1 A2 and B2 A1 get in. All ranks must be equal.
    """
    scales = [weight * f.scaling for f, weight in terms]
    roots = [math.sqrt(abs(scale)) for scale in scales]
    signed = [math.copysign(root, scale) for root, scale in zip(roots, scales, strict=True)]
    a_RI = mix([f.a_RI.detach() for f, _ in terms], signed)
    return a_RI, mix([f.b_OR.detach() for f, _ in terms], roots)


def mixed_delta(terms: Sequence[Term], mix: Mix) -> Tensor:
    """Return the deltas mixed entry by entry, [O, I]."""
    return mix([f.product().detach() for f, _ in terms], [weight for _, weight in terms])


def mixed_spectrum(terms: Sequence[Term], mix: Mix, r: int | None) -> LowRank:
    """Return the leading `r` singular triplets of the mixed deltas.

    A sum is never built as a matrix; without `r` it keeps all that stands out from rounding. Another mix has
    full rank, and without `r` is cut to the sum of the ranks.
    """
    if mix.method == "sum":
        spectrum = product_svd(*side_by_side(terms))
        return spectrum.cut(r or max(1, spectrum.numerical_rank))
    return leading_svd(mixed_delta(terms, mix), Cut(r or sum(f.rank for f, _ in terms)))


def mixed_bias(terms: Sequence[Term], biases: Sequence[Tensor | None], mix: Mix) -> Tensor:
    """Return the bias of a B whose scaling is 1, [O], for terms of which some, at least one, have one."""
    first = next(bias for bias in biases if bias is not None)
    values = [
        torch.zeros_like(first) if bias is None else bias.detach() * f.scaling
        for (f, _), bias in zip(terms, biases, strict=True)
    ]
    return mix(values, [weight for _, weight in terms])
