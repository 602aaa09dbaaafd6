"""Rows of Arrow tables as JSON would have them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from loralab.data.fields import Row
from loralab.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["PART", "numbered", "plain_row", "rows_of"]

PART = 256
"""Rows that are taken out of a table at a time."""


def plain_row(row: Mapping[str, Any]) -> Row:
    """Return the row with nothing in it that JSON does not know."""
    return {str(column): _plain(value) for column, value in row.items()}


def _plain(value: Any) -> object:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, bytes):
        # Some writers keep text so. What is no text must not pass for it.
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"bytes": len(value)}
    if isinstance(value, Mapping):
        return plain_row(value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value)


def rows_of(table: "Dataset", name: str) -> Iterator[tuple[str, Row]]:
    """Yield each row of what `datasets` opened; images and sounds stay as they are stored.

    Raises:
        DataError: there are none.
    """
    parts = table.with_format("arrow").iter(batch_size=PART)
    return numbered((row for part in parts for row in part.to_pylist()), name)


def numbered(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[tuple[str, Row]]:
    """Yield each row with its number, from 1.

    Raises:
        DataError: there are none.
    """
    number = 0
    for number, row in enumerate(rows, start=1):
        yield f"{name}:row {number}", plain_row(row)
    if not number:
        raise DataError(f"{name}: no rows: the table is empty.")
