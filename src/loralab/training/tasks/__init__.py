"""What differs between kinds of training: reading data, batches, the loss. One file a kind.

The loop knows the `Task` protocol and nothing of text.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Task"]


class Task(Protocol):
    """One kind of training. An example is whatever the task makes of a row of data."""

    def weight(self, example: Any) -> float:
        """Return how much of the loss's mean an example carries: for text, its trained tokens."""

    def size(self, example: Any) -> int:
        """Return the amount of work in an example: for text, its tokens."""

    def loss(self, model: Any, examples: Sequence[Any]) -> Tensor:
        """Return the weighted sum of the examples' losses, a scalar fp32 tensor with its graph."""
