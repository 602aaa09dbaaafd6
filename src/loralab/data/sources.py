"""Files become rows: `.txt`, `.json` and `.jsonl`, in UTF-8 with or without a byte order mark."""

import codecs
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from loralab.data.fields import Row, kind, quoted
from loralab.errors import DataError, did_you_mean

__all__ = ["read_rows"]


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Return each row of a file with where it stands: ``("train.jsonl:118", {"prompt": ...})``.

    A `.txt` file is one row ``{"text": ...}``. A `.json` file is a list of objects, or an object in which one
    value is such a list; its rows are counted from 1: ``"train.json:row 3"``. A `.jsonl` file has one object
    a line; blank lines are no rows.

    Raises:
        DataError: the file is missing, a folder, empty, without rows, of another kind, not UTF-8, or
            malformed. What a later line is guilty of is raised when the iterator comes to it.
    """
    _check_file(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise DataError(f"{path}: files that end in '{path.suffix}' cannot be read; convert it to {known}.")
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    if not data.strip():
        raise DataError(f"{path}: the file is empty.")
    return reader(data, path.name)


def _check_file(path: Path) -> None:
    if os.path.isdir(path):
        raise DataError(f"{path}: this is a folder; name a file in it.")
    # os.path answers no where Path raises, as for a name that is too long.
    if not os.path.exists(path):
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file.{did_you_mean(path.name, siblings)}")


def _decode(data: bytes, name: str, line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        byte = error.start - (data.rfind(b"\n", 0, error.start) + 1)
        raise DataError(
            f"{name}:{line}: not UTF-8: byte {byte + 1} of the line is 0x{data[error.start]:02x}. "
            "Save the file as UTF-8."
        ) from None


def _parse(text: str, name: str, line: int) -> object:
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{name}:{line + error.lineno - 1}"
        raise DataError(f"{place}: malformed JSON at column {error.colno}: {error.msg}.") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or lists nested a thousand deep.
        raise DataError(f"{name}:{line}: JSON that cannot be read: {error}.") from None
    return value


def _read_txt(data: bytes, name: str) -> Iterator[tuple[str, Row]]:
    yield f"{name}:1", {"text": _decode(data, name, 1).replace("\r\n", "\n")}


def _read_jsonl(data: bytes, name: str) -> Iterator[tuple[str, Row]]:
    for line, raw in enumerate(io.BytesIO(data), start=1):
        text = _decode(raw, name, line)
        if not text.strip():
            continue
        row = _parse(text.rstrip("\r\n"), name, line)
        if not isinstance(row, dict):
            hint = " A file that is one list is named .json." if isinstance(row, list) else ""
            raise DataError(f"{name}:{line}: a line must be an object, found {kind(row)}.{hint}")
        yield f"{name}:{line}", row


def _read_json(data: bytes, name: str) -> Iterator[tuple[str, Row]]:
    rows = _find_rows(_parse(_decode(data, name, 1), name, 1), name)
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


_READERS: dict[str, Callable[[bytes, str], Iterator[tuple[str, Row]]]] = {
    ".txt": _read_txt,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
}
