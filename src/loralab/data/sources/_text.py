"""Bytes become text, and a fault has its line."""

import codecs
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from loralab.errors import DataError

__all__ = ["decode", "decoded_lines", "opened", "parse", "read_text"]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Yield the file, to be read as bytes; a byte order mark is passed over.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                stream.seek(0)
            yield stream
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error


def read_text(path: Path, name: str) -> str:
    """Return the whole file, its line ends as they are.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    with opened(path) as stream:
        return decode(stream.read(), name, 1)


def decoded_lines(path: Path, name: str) -> Iterator[str]:
    """Yield each line with its end; raises as `read_text`, or that the file is empty."""
    with opened(path) as stream:
        blank = True
        for line, data in enumerate(stream, start=1):
            blank = blank and not data.strip()
            yield decode(data, name, line)
    if blank:
        raise DataError(f"{path}: the file is empty.")


def decode(data: bytes, name: str, line: int) -> str:
    """Return the text that begins in that line.

    Raises:
        DataError: it is not UTF-8; the message has the line and the byte of it.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        byte = error.start - (data.rfind(b"\n", 0, error.start) + 1)
        raise DataError(
            f"{name}:{line}: not UTF-8: byte {byte + 1} of the line is 0x{data[error.start]:02x}. "
            "Save the file as UTF-8."
        ) from None


def parse(text: str, name: str, line: int) -> object:
    """Return the JSON value that begins in that line.

    Raises:
        DataError: it is malformed; the message has the line and the column.
    """
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{name}:{line + error.lineno - 1}"
        raise DataError(f"{place}: malformed JSON at column {error.colno}: {error.msg}.") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or lists nested a thousand deep.
        raise DataError(f"{name}:{line}: JSON that cannot be read: {error}.") from None
    return value
