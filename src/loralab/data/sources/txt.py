"""A text: the whole file is one row ``{"text": ...}``, its line ends those of Unix."""

from collections.abc import Iterator
from pathlib import Path

from loralab.data.fields import Row
from loralab.data.sources._text import read_text
from loralab.errors import DataError

SUFFIXES = (".txt",)


def read(path: Path, name: str) -> Iterator[tuple[str, Row]]:
    """Yield the row; `DataError` if the file is empty or not UTF-8."""
    text = read_text(path, name).replace("\r\n", "\n")
    if not text.strip():
        raise DataError(f"{path}: the file is empty.")
    yield f"{name}:1", {"text": text}
