"""Rows that occur more than once, and validation rows that are not new to the model."""

from collections.abc import Iterator

from loralab.data.checks._given import Given, Table, share
from loralab.data.findings import Code, Finding

DUPLICATES = Code(
    "D111",
    "warning",
    "rows occur more than once",
    "delete the copies; to weigh a file more, write PATH*2 instead",
)
OVERLAP = Code(
    "D112",
    "warning",
    "validation rows are training rows too, so the validation loss is too good",
    "delete them from one of the two, or use --eval-split",
)
SAME_PROMPTS = Code(
    "D113",
    "note",
    "validation prompts are in the training data with other answers",
    "split so that a prompt is on one side only, if answers to new prompts are what counts",
)
CODES = (DUPLICATES, OVERLAP, SAME_PROMPTS)


def check(given: Given) -> Iterator[Finding]:
    """Compare rows by the hash of their ids."""
    train = given.train
    first: dict[int, int] = {}
    found = [number for number, row in enumerate(train.rows) if first.setdefault(row, number) != number]
    # A row that is taken twice by PATH*2 is no copy.
    sources = train.sources() if found else []
    copies = [number for number in found if sources[number] != sources[first[train.rows[number]]]]
    if copies:
        text = f"{share(len(copies), len(train))} examples are copies of an earlier one"
        yield DUPLICATES.found(text, len(copies), train.sources(copies))
    if given.validation is not None:
        yield from _overlap(given, train, given.validation)


def _overlap(given: Given, train: Table, validation: Table) -> Iterator[Finding]:
    rows = set(train.rows)
    same = [number for number, row in enumerate(validation.rows) if row in rows]
    if same:
        text = f"{share(len(same), len(validation))} validation rows are training rows too"
        yield OVERLAP.found(text, len(same), validation.sources(same))
    if given.documents:
        return
    prompts = set(train.prompts)
    known = [
        number
        for number, (prompt, row) in enumerate(zip(validation.prompts, validation.rows, strict=True))
        if prompt in prompts and row not in rows
    ]
    if known:
        text = f"{share(len(known), len(validation))} validation prompts are in the training data too"
        yield SAME_PROMPTS.found(f"{text}, with other answers", len(known), validation.sources(known))
