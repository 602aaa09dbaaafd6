"""What differs between kinds of training: reading data, batches, the loss. One file a kind.

The loop knows the `Task` protocol and nothing of text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Joint", "Task"]


@dataclass(frozen=True)
class Joint:
    """Examples of one run or of several as one batch, one run's behind the other's."""

    batch: Any
    counts: Sequence[int]
    """How much of the batch each run has: tokens of its one row, or rows."""
    trained: Sequence[int]
    """The trained tokens of each run."""
    one_row: bool

    def rows(self, names: Sequence[str]) -> tuple[list[str], list[int] | None]:
        """Return the arguments of `LoraModel.rows` that run each run's part with its adapter of `names`."""
        if self.one_row:
            return list(names), list(self.counts)
        return [name for name, count in zip(names, self.counts, strict=True) for _ in range(count)], None


class Task(Protocol):
    """One kind of training. An example is whatever the task makes of a row of data."""

    def weight(self, example: Any) -> float:
        """Return how much of the loss's mean an example carries: for text, its trained tokens."""

    def size(self, example: Any) -> int:
        """Return the amount of work in an example: for text, its tokens."""

    def loss(self, model: Any, examples: Sequence[Any]) -> Tensor:
        """Return the weighted sum of the examples' losses, a scalar fp32 tensor with its graph."""

    def join(self, parts: Sequence[Sequence[Any]]) -> Joint:
        """Return the examples of several runs as one batch."""

    def losses(self, model: Any, joint: Joint) -> list[Tensor]:
        """Return what `loss` says, for each run of a joint batch; one pass through the model makes all."""
