"""Exact match: the share of answers that are one of their references, letter for letter."""

from collections.abc import Sequence

PACKAGE = ""


def score(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return ``exact``, in percent."""
    right = sum(answer in wanted for answer, wanted in zip(answers, references, strict=True))
    return {"exact": 100 * right / len(answers)}
