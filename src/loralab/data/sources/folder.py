"""A folder of .txt files: each is a row, "tales/2.txt:1", before "tales/10.txt:1"."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from loralab.data.fields import Row
from loralab.data.sources._text import read_text

WHAT = "a folder of .txt files"


def takes(path: Path) -> bool:
    """Return whether there is a .txt file in the folder."""
    return os.path.isdir(path) and bool(files(path))


def files(path: Path) -> list[Path]:
    """Return the .txt files, those with numbers in their names in the order of the numbers."""
    found = [entry for entry in path.iterdir() if entry.suffix.lower() == ".txt" and entry.is_file()]
    return sorted((entry for entry in found if not entry.name.startswith(".")), key=_natural)


def unread(path: Path) -> list[str]:
    """Return the names of the files and folders that are no .txt files."""
    read = {entry.name for entry in files(path)}
    return sorted(
        entry.name for entry in path.iterdir() if entry.name not in read and not entry.name.startswith(".")
    )


def read(path: Path, name: str) -> Iterator[tuple[str, Row]]:
    """Yield each file's text; `DataError` for one that is not UTF-8. A blank one is a row like others."""
    for file in files(path):
        place = f"{name}/{file.name}"
        yield f"{place}:1", {"text": read_text(file, place).replace("\r\n", "\n")}


def _natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.findall(r"\d+|\D+", path.name.lower())
    # Digits that int() does not read, as a superscript two, are text.
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], path.name
