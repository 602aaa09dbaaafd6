"""NIST (Doddington 2002), with n-grams up to 5, as NIST's own mteval-v13a computes it by default.

The tokens are those of mteval-v13a, in lower case. With several references of an answer, an n-gram counts as
often as it stands in the one that has it most often, and the reference length is their mean.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from operator import or_

PACKAGE = "sacrebleu"

_LONGEST = 5
_BETA = math.log(0.5) / math.log(1.5) ** 2
"""Makes the brevity penalty 0.5 where the answers have two thirds of the references' tokens."""


def score(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return ``nist`` of all answers as one corpus: 0 or more, there is no highest value."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize = Tokenizer13a()
    said = [tokenize(answer).lower().split() for answer in answers]
    wanted = [[tokenize(text).lower().split() for text in texts] for texts in references]
    return {"nist": nist(said, wanted)}


def nist(answers: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """Return the NIST score of tokens: equation 3 of Doddington, with the information of equation 2."""
    counts = [[_ngrams(tokens) for tokens in texts] for texts in references]
    seen: Counter[tuple[str, ...]] = Counter()
    for texts in counts:
        for each in texts:
            seen.update(each)
    words = sum(len(tokens) for texts in references for tokens in texts)
    gained, made = [0.0] * _LONGEST, [0] * _LONGEST
    for tokens, texts in zip(answers, counts, strict=True):
        own = _ngrams(tokens)
        for ngram, count in (own & reduce(or_, texts)).items():
            before = seen[ngram[:-1]] if len(ngram) > 1 else words
            gained[len(ngram) - 1] += count * math.log2(before / seen[ngram])
        for ngram, count in own.items():
            made[len(ngram) - 1] += count
    precision = sum(gain / total for gain, total in zip(gained, made, strict=True) if total)
    length = sum(sum(map(len, texts)) / len(texts) for texts in references)
    return precision * _brevity(sum(map(len, answers)), length)


def _brevity(answers: float, references: float) -> float:
    if not answers or not references:
        return 0.0
    return math.exp(_BETA * math.log(min(answers / references, 1.0)) ** 2)


def _ngrams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    """Return all n-grams up to the longest. A tuple that an n-gram begins with is one of them too."""
    orders = range(1, _LONGEST + 1)
    return Counter(tuple(tokens[i : i + n]) for n in orders for i in range(len(tokens) - n + 1))
