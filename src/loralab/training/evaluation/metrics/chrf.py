"""chrF (Popovic 2015), by the library sacrebleu with its defaults: F2 of character n-grams up to 6."""

from collections.abc import Sequence
from itertools import zip_longest

PACKAGE = "sacrebleu"


def score(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return ``chrf`` of all answers as one corpus, 0 to 100."""
    from sacrebleu.metrics.chrf import CHRF

    streams = [list(stream) for stream in zip_longest(*references)]
    return {"chrf": CHRF().corpus_score(list(answers), streams).score}
