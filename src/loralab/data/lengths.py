"""How long the examples are, and how full the rows of batches are with them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loralab.data.pack import pack

__all__ = ["Fill", "fill", "histogram"]

_BINS = 12
_BATCHES = 50


def histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (shortest, longest, examples) of each bar, at most 12 of them, of round widths.

    Bars without an example stand between others, but not at the ends.
    """
    if not lengths:
        return []
    first, last = min(lengths), max(lengths)
    width = next(
        size * 10**power
        for power in range(12)
        for size in (1, 2, 5)
        if (last - 1) // (size * 10**power) - (first - 1) // (size * 10**power) < _BINS
    )
    start = (first - 1) // width
    counts = np.bincount((np.asarray(lengths) - 1) // width - start).tolist()
    return [((start + bar) * width + 1, (start + bar + 1) * width, count) for bar, count in enumerate(counts)]


@dataclass(frozen=True, slots=True)
class Fill:
    """The share of the tokens of batches that is not padding."""

    rows: float
    """With a row for each example, as wide as the longest of its micro-batch."""
    packed: float
    """With several examples to a row."""


def fill(lengths: Sequence[int], micro_batch_size: int) -> Fill:
    """Return how full micro-batches of examples drawn at random are, over 50 of them."""
    generator = np.random.default_rng(0)
    size = min(micro_batch_size, len(lengths))
    tokens = alone = packed = 0
    for _ in range(_BATCHES):
        drawn = [lengths[number] for number in generator.choice(len(lengths), size, replace=False)]
        width = max(drawn)
        tokens += sum(drawn)
        alone += width * size
        packed += width * len(pack(drawn, width))
    return Fill(tokens / max(alone, 1), tokens / max(packed, 1))
