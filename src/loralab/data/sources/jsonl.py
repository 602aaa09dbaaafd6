"""One JSON object a line; blank lines are no rows. Read line by line, so a file may be larger than memory."""

from collections.abc import Iterator
from pathlib import Path

from loralab.data.fields import Row, kind
from loralab.data.sources._text import decoded_lines, parse
from loralab.errors import DataError

SUFFIXES = (".jsonl",)


def read(path: Path, name: str) -> Iterator[tuple[str, Row]]:
    """Yield each row; `DataError` for a line that is no object."""
    for line, text in enumerate(decoded_lines(path, name), start=1):
        if not text.strip():
            continue
        row = parse(text.rstrip("\r\n"), name, line)
        if not isinstance(row, dict):
            hint = " A file that is one list is named .json." if isinstance(row, list) else ""
            raise DataError(f"{name}:{line}: a line must be an object, found {kind(row)}.{hint}")
        yield f"{name}:{line}", row
