"""ROUGE-1, -2 and -L (Lin 2004), by the library rouge-score, without stemming."""

from collections.abc import Sequence

PACKAGE = "rouge_score"
_KINDS = ("rouge1", "rouge2", "rougeL")


def score(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return ``rouge1``, ``rouge2`` and ``rougeL``: mean F of the best reference, 0 to 100.

    The library reads letters a-z and digits and takes all else for gaps, so other scripts score 0.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(_KINDS), use_stemmer=False)
    found = [
        scorer.score_multi(list(wanted), answer) for answer, wanted in zip(answers, references, strict=True)
    ]
    return {kind: 100 * sum(each[kind].fmeasure for each in found) / len(found) for kind in _KINDS}
