"""Loss over a data set: of rows, and of documents through a sliding window."""

from collections.abc import Generator, Sequence
from typing import Any

from loralab.data.chunk import chunk
from loralab.data.types import Example
from loralab.training.loop import evaluate
from loralab.training.tasks import Task

__all__ = ["measure_loss", "slide"]

_BATCHES = 4
"""Micro-batches between two signs of life."""


def slide(documents: Sequence[Example], max_length: int, stride: int) -> list[Example]:
    """Return windows of at most `max_length` tokens over each document.

    Each begins `stride` tokens behind the one before, and trains the tokens that are new in it; those before
    are context. So every token but a document's first is scored once, whatever the two lengths are. A window
    keeps at least one token of context: with `stride` = `max_length` it goes on by one less.
    """
    overlap = max_length - min(stride, max_length - 1)
    return [
        window
        for document in documents
        for window in chunk(
            document, (), cutoff_length=max_length, overlap_length=overlap, newline_favor_length=0
        )
    ]


def measure_loss(
    model: Any, task: Task, examples: Sequence[Example], micro_batch: int
) -> Generator[int, None, tuple[float, int]]:
    """Yield the trained tokens done so far; return (mean loss a trained token in nats, trained tokens).

    Each token weighs the same, in whichever window or row it stands. The micro-batches are those of
    `evaluate`, so the loss is the one that it gives for all examples at once.
    """
    by_size = sorted(examples, key=task.size, reverse=True)
    total, tokens = 0.0, 0
    for start in range(0, len(by_size), _BATCHES * micro_batch):
        part = by_size[start : start + _BATCHES * micro_batch]
        loss, trained = evaluate(model, task, part, micro_batch)
        total += loss * trained
        tokens += trained
        yield tokens
    return total / tokens, tokens
