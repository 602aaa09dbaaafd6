"""Tables as text: the first line names the columns, and every value is a string.

Between two values stands a comma, semicolon or tab, whichever the first line has most of; a value with one of
these or a line break in it stands in double quotes. Read row by row, so a file may be larger than memory.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from loralab.data.fields import Row, quoted
from loralab.data.sources._text import decoded_lines
from loralab.errors import DataError

SUFFIXES = (".csv", ".tsv")

_LONGEST = 2**31 - 1


def read(path: Path, name: str) -> Iterator[tuple[str, Row]]:
    """Yield each row with the line it begins in; `DataError` for one that does not have the columns."""
    # The library refuses values of over 131,072 characters, and only as a whole can it be told otherwise.
    csv.field_size_limit(_LONGEST)
    columns: list[str] = []
    rows = 0
    for line, values in _records(path, name):
        if not columns:
            columns = _header(values, f"{name}:{line}")
        elif len(values) != len(columns):
            raise DataError(
                f"{name}:{line}: the row has {len(values)} values; the first line names {len(columns)} "
                f"columns: {quoted(columns)}. A value with a separator or a line break in it needs quotes."
            )
        else:
            rows += 1
            yield f"{name}:{line}", dict(zip(columns, values, strict=True))
    if not rows:
        raise DataError(f"{name}: no rows: there is only the line that names the columns.")


def _records(path: Path, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the values of each row that is not blank, with the line it begins in."""
    lines = decoded_lines(path, name)
    first = next(lines, "")
    separator = max(",;\t", key=first.count)
    reader = csv.reader(_unix(first, lines), delimiter=separator, strict=True)
    line = 1
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{name}:{line}: malformed CSV: {error}. Is a quote not closed?") from None
        if values:
            yield line, values
        line = reader.line_num + 1


def _unix(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first.replace("\r\n", "\n")
    for text in lines:
        yield text.replace("\r\n", "\n")


def _header(columns: list[str], source: str) -> list[str]:
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{source}: two columns are named {quoted(twice)}; give each its own name.")
    return columns
