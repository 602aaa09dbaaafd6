"""One JSON value: a list of objects, or an object in which one value is such a list. It is read whole."""

from collections.abc import Iterator
from pathlib import Path

from loralab.data.fields import Row, kind, quoted
from loralab.data.sources._text import parse, read_text
from loralab.errors import DataError

SUFFIXES = (".json",)


def read(path: Path, name: str) -> Iterator[tuple[str, Row]]:
    """Yield each row, counted from 1: "train.json:row 3"; `DataError` for one that is no object."""
    text = read_text(path, name)
    if not text.strip():
        raise DataError(f"{path}: the file is empty.")
    rows = _find_rows(parse(text, name, 1), name)
    if not rows:
        raise DataError(f"{name}: no rows: the list is empty.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{name}:row {number}: a row must be an object, found {kind(row)}.")
        yield f"{name}:row {number}", row


def _find_rows(value: object, name: str) -> list[object]:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise DataError(f"{name}: expected a list of objects, found {kind(value)}.")
    lists = [key for key, entry in value.items() if isinstance(entry, list)]
    if len(lists) != 1:
        raise DataError(
            f"{name}: expected a list of objects, or an object with one list; found an object with "
            f"the lists {quoted(lists)}."
        )
    found: list[object] = value[lists[0]]
    return found
