"""Texts that are not as they should be: line ends of Windows, wrongly decoded letters, unknown tokens."""

import re
from collections.abc import Iterator

import numpy as np

from loralab.data.checks._given import Given, share
from loralab.data.findings import Code, Finding

CARRIAGE = Code(
    "D141",
    "warning",
    "texts hold carriage returns (CRLF line ends), which the model will learn to write",
    "convert the line ends, as with dos2unix",
)
GARBLED = Code(
    "D142",
    "warning",
    "texts were decoded wrongly once: they hold U+FFFD, or pairs as \u00c3\u00a9 for \u00e9",
    "make the file again from its source, and read that as UTF-8",
)
UNKNOWN = Code(
    "D143",
    "warning",
    "over 1 % of the tokens are the unknown token: the tokenizer cannot write this text",
    "choose a base whose tokenizer knows the language or the signs",
)
CODES = (CARRIAGE, GARBLED, UNKNOWN)

_MANY_UNKNOWN = 0.01
# The bytes of a letter of two or three bytes in UTF-8, read as Windows-1252.
_BEHIND = "[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac]"
_GARBLED = re.compile(f"\ufffd|\u00c3{_BEHIND}|\u00c2[\u0080-\u00bf]|\u00e2{_BEHIND}{{2}}")


def check(given: Given) -> Iterator[Finding]:
    """Look through the vocabulary that occurs, and through the text of some examples."""
    train = given.train
    ids, texts = given.vocabulary
    returns = ids[["\r" in text for text in texts]]
    rows = np.flatnonzero(train.with_token(np.isin(train.ids_T, returns))) if len(returns) else returns
    if len(rows):
        text = f"{share(len(rows), len(train))} examples hold a carriage return (\\r)"
        yield CARRIAGE.found(text, len(rows), train.sources(rows))
    numbers, sample = given.sample
    # At its ends a block may have a piece of a letter.
    garbled = [
        number for number, text in zip(numbers, sample, strict=True) if _GARBLED.search(text.strip("\ufffd"))
    ]
    if garbled:
        text = f"{share(len(garbled), len(sample))} examples that were looked at hold wrongly decoded letters"
        yield GARBLED.found(text, len(garbled), train.sources(garbled))
    unknown = given.tokenizer.unk_token_id
    if unknown is not None:
        hits_T = train.ids_T == unknown
        count = int(np.count_nonzero(hits_T))
        if count > _MANY_UNKNOWN * len(hits_T):
            rows = np.flatnonzero(train.with_token(hits_T))
            text = f"{share(count, len(hits_T))} tokens are {given.tokenizer.unk_token}"
            yield UNKNOWN.found(f"{text}, in {len(rows):,} examples", len(rows), train.sources(rows))
