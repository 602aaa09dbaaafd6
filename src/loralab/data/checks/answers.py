"""Answers that say nothing or all say the same, and prompts that do not vary."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

import numpy as np

from loralab.data.checks._given import Given, share
from loralab.data.findings import Code, Finding

HOLLOW = Code(
    "D151",
    "warning",
    "answers say nothing: punctuation alone, or a placeholder as nan, null, none, n/a",
    "fill them in, or delete the rows",
)
ONE_ANSWER = Code(
    "D152",
    "warning",
    "one answer stands in more than half of the rows: the model will learn to give it always",
    "balance the answers, or check --columns",
)
ONE_PROMPT = Code(
    "D153",
    "warning",
    "all rows have the same prompt, so there is nothing to tell answers apart by",
    "check --columns; to train on plain text, use --format text",
)
LITTLE = Code(
    "D154",
    "note",
    "under 5 % of the tokens are trained: most of the time goes into prompts",
    "shorten the prompts, if they can be",
)
CODES = (HOLLOW, ONE_ANSWER, ONE_PROMPT, LITTLE)

_SHORT = 6
"""The most tokens of an answer that is looked at as text."""
_PLACEHOLDER = re.compile(r"(?i)(nan|null|none|n/a|undefined|todo|tbd|\[removed\]|\[deleted\])\.?")
_MOST = 0.5
_LITTLE = 0.05


def check(given: Given) -> Iterator[Finding]:
    """Compare answers and prompts by their ids, and read the short ones."""
    if given.documents:
        return
    train, total = given.train, len(given.train)
    hollow = _hollow(given)
    if hollow:
        text = f"{share(len(hollow), total)} answers say nothing"
        yield HOLLOW.found(text, len(hollow), train.sources(hollow))
    if total < 2:
        return
    answer, count = Counter(train.answer_hashes).most_common(1)[0]
    if count > _MOST * total and count > 1:
        first = train.answer_hashes.index(answer)
        text = f"{share(count, total)} rows have the same answer, {_answer(given, first)!r}"
        yield ONE_ANSWER.found(text, count, train.sources([first]))
    if len(set(train.prompts)) == 1:
        yield ONE_PROMPT.found(f"all {total:,} rows have the same prompt", total, train.sources([0]))
    if given.data.trained_tokens < _LITTLE * given.data.tokens:
        part = share(given.data.trained_tokens, given.data.tokens)
        yield LITTLE.found(f"{part} tokens are trained")


def _hollow(given: Given) -> list[int]:
    _, ends = given.train.answers
    short = np.flatnonzero(np.diff(ends) <= _SHORT).tolist()
    judged: dict[int, bool] = {}
    found = []
    for number in short:
        answer = given.train.answer_hashes[number]
        if answer not in judged:
            text = _answer(given, number)
            nothing = all(unicodedata.category(letter)[0] in "PZC" for letter in text)
            judged[answer] = nothing or _PLACEHOLDER.fullmatch(text) is not None
        if judged[answer]:
            found.append(number)
    return found


def _answer(given: Given, number: int) -> str:
    """Return what is trained of an example, as text without marks, of the long ones the beginning."""
    ids, ends = given.train.answers
    whole = given.tokenizer.decode(ids[ends[number] : ends[number + 1]].tolist(), skip_special_tokens=True)
    text = " ".join(str(whole).split())
    return text if len(text) <= 40 else f"{text[:40]}..."
