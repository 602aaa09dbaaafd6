"""``evaluations.csv``: one line for each model that was measured on some data, added to call by call."""

import contextlib
import csv
import fcntl
import io
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralab.errors import CheckpointError, DataError, did_you_mean
from loralab.files import write_text

__all__ = ["COLUMNS", "Table"]

COLUMNS = (
    *("date", "model", "adapter", "adapter_digest", "data", "rows", "format", "template"),
    *("max_length", "stride", "dtype", "loss", "perplexity", "tokens", "comment", "key"),
)
"""The columns of a new table. Metrics stand behind them, in the order in which they were first asked for."""

_TEXT = (
    "date",
    "model",
    "adapter",
    "adapter_digest",
    "data",
    "format",
    "template",
    "dtype",
    "comment",
    "key",
)
_NEEDED = ("model", "key")


@dataclass(frozen=True)
class Table:
    """The table in a file. It is read anew each time, as others may write to it."""

    path: Path

    def rows(self) -> list[dict[str, Any]]:
        """Return its rows, numbers as numbers and empty cells as ""; none if there is no file.

        Raises:
            DataError: it is no such table.
        """
        return [{name: _value(name, cell) for name, cell in row.items()} for row in self._read()[1]]

    def find(self, key: str) -> dict[str, Any] | None:
        """Return the newest row with that key. Raises as `rows`."""
        return next((row for row in reversed(self.rows()) if row["key"] == key), None)

    def add(self, row: Mapping[str, object]) -> None:
        """Add a row, and a column for whatever it has that the table has not.

        Rows and columns that are there already stay, those of a person too. The file is written whole or not
        at all, and by one process at a time.

        Raises:
            DataError: the file is no such table.
            CheckpointError: it cannot be written.
        """

        def change(columns: list[str], rows: list[dict[str, str]]) -> None:
            columns += [name for name in row if name not in columns]
            rows.append({name: str(value) for name, value in row.items()})

        self._change(change)

    def set_comment(self, keys: Collection[str], comment: str) -> None:
        """Write the comment into the newest row of each key. Raises as `add`."""

        def change(columns: list[str], rows: list[dict[str, str]]) -> None:
            columns += [] if "comment" in columns else ["comment"]
            for row in {row["key"]: row for row in rows if row["key"] in keys}.values():
                row["comment"] = comment

        self._change(change)

    def check(self) -> None:
        """Make sure that rows can be added, before they are worked out. Raises as `add`."""
        with self._held():
            self._read()

    def _change(self, change: Callable[[list[str], list[dict[str, str]]], None]) -> None:
        with self._held():
            columns, rows = self._read()
            change(columns, rows)
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_text(self.path, text.getvalue())

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = self.path.with_name(f".{self.path.name}.lock").open("a")
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be written ({error.strerror}); choose another --table."
            ) from None
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Return the columns and the rows as they stand."""
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            return list(COLUMNS), []
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: cannot be read as a table ({error}).") from None
        if not text.strip():
            return list(COLUMNS), []
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
        try:
            return self._parse(reader)
        except csv.Error as error:
            raise DataError(f"{self.path}:{reader.reader.line_num}: malformed CSV ({error}).") from None

    def _parse(self, reader: "csv.DictReader[str]") -> tuple[list[str], list[dict[str, str]]]:
        columns = list(reader.fieldnames or ())
        missing = [name for name in _NEEDED if name not in columns]
        if missing:
            raise DataError(
                f"{self.path}:1: no column {missing[0]!r}, so this is no table of evaluations (CSV with "
                f"commas).{did_you_mean(missing[0], columns)} Choose another file with --table."
            )
        rows = []
        for row in reader:
            if "" in row and "" not in columns:
                raise DataError(f"{self.path}:{reader.line_num}: more cells than the {len(columns)} columns.")
            rows.append({name: cell or "" for name, cell in row.items()})
        return columns, rows


def _value(name: str, cell: str) -> Any:
    """Return a cell as what it was: a number, where the column is not text."""
    if name in _TEXT:
        return cell
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(cell)
    return cell
