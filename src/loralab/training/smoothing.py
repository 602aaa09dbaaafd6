"""The smoothed loss: one meaning of it for the screen, the curves and `stop_at_loss`."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["SETTLED", "Smoothed", "smooth"]

SETTLED = 10
"""Before so many steps the smoothed loss is too much of a few batches to end a run by."""

_KEPT = 0.9


@dataclass
class Smoothed:
    """An exponential mean, about that of the last ten values.

    It is divided by the weights that it has so far; without that the first value, or zero, would count most
    for long (Adam's bias correction, arXiv:1412.6980, section 3). The two numbers are all of its state.
    """

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> float:
        """Take in a value and return the mean."""
        self.total = _KEPT * self.total + value
        self.weight = _KEPT * self.weight + 1
        return self.mean

    @property
    def mean(self) -> float:
        """The mean of what came so far; 0 before the first value."""
        return self.total / self.weight if self.weight else 0.0


def smooth(values: Iterable[float]) -> list[float]:
    """Return the smoothed value after each of the values."""
    mean = Smoothed()
    return [mean.add(value) for value in values]
