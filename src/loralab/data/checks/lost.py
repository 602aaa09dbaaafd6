"""Rows that are not trained on, or not whole."""

from collections import Counter
from collections.abc import Iterator

from loralab.data.checks._given import Given, share
from loralab.data.dataset import Dataset
from loralab.data.findings import Code, Finding

BLANK = Code("D101", "warning", "rows have nothing to train on", "fill in their answers, or delete the rows")
TOO_LONG = Code(
    "D102",
    "warning",
    "rows are longer than cutoff_length and left out",
    "raise --cutoff-length, or keep their beginnings with --too-long cut",
)
CUT = Code(
    "D103",
    "warning",
    "rows are cut at cutoff_length: their answers have no end",
    "raise --cutoff-length, or leave them out with --too-long drop",
)
OTHERWISE = Code("D104", "note", "rows are left out for another reason", "see rejected.jsonl for each")
TOO_MANY = Code(
    "D105",
    "error",
    "more than half of the rows are left out",
    "set right what the other findings name, or delete these rows from the file",
)
UNUSED = Code(
    "D106", "note", "columns are not used", "name them with --columns if they hold the prompt or the answer"
)
UNREAD = Code(
    "D107", "note", "files beside the data are not read", 'name each, with " + " between, to read them too'
)
CODES = (BLANK, TOO_LONG, CUT, OTHERWISE, TOO_MANY, UNUSED, UNREAD)

_MOST = 0.5
_SHOWN = 5


def check(given: Given) -> Iterator[Finding]:
    """Count what training and validation data lose."""
    yield from _lost(given.data, "")
    if given.eval_data:
        yield from _lost(given.eval_data, "validation data: ")
    if given.data.unused_columns:
        columns = ", ".join(given.data.unused_columns)
        yield UNUSED.found(f"columns that are not used: {columns}")
    unread = [name for counts in given.data.counts for name in counts.unread]
    if unread:
        shown = ", ".join(unread[:_SHOWN]) + ", ..." * (len(unread) > _SHOWN)
        yield UNREAD.found(f"beside the data lies what is not read: {shown}")


def _lost(data: Dataset, label: str) -> Iterator[Finding]:
    counts: Counter[str] = Counter()
    first: dict[str, list[str]] = {}
    for rejected in data.rejected:
        reason = rejected.reason.split(":")[0]
        counts[reason] += 1
        if counts[reason] <= 3:
            first.setdefault(reason, []).append(rejected.source)
    lost = len(data.rejected)
    total = lost + data.used
    for reason, count in counts.items():
        yield _code(reason).found(
            f"{label}{share(count, total)} rows left out: {reason}", count, first[reason]
        )
    if data.cut:
        text = f"{label}{share(data.cut, data.used)} rows are cut at cutoff_length"
        yield CUT.found(text, data.cut)
    if lost > _MOST * total:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in counts.items())
        yield TOO_MANY.found(f"{label}{share(lost, total)} rows are left out: {reasons}", lost)


def _code(reason: str) -> Code:
    if "nothing to train on" in reason:
        return BLANK
    return TOO_LONG if "longer than" in reason else OTHERWISE
