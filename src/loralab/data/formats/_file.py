"""text-generation-webui's own format files: ``{"instruction,output": "Q: %instruction%\\nA: %output%"}``.

An entry's key says which columns a row must have, and its value how they are written. The last column that
the value names, with what follows it, is the answer and trained; what stands before it is the prompt.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loralab.data.fields import Row, kind, quoted, read_text
from loralab.data.types import Chat, Message
from loralab.errors import ConfigError, DataError, did_you_mean

__all__ = ["FormatFile", "read"]


@dataclass(frozen=True, slots=True)
class _Entry:
    """`pieces` stand around the values of `columns`, which may come twice: one piece more than columns."""

    pieces: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def asked(self) -> set[str]:
        """The columns of the prompt."""
        return set(self.columns[:-1])

    @property
    def before(self) -> str:
        """What stands before the answer, without its `lead`."""
        return self.pieces[-2].rstrip(" ")

    @property
    def lead(self) -> str:
        """The spaces before the answer. Tokenizers set them into the token of its first word."""
        return self.pieces[-2][len(self.before) :]

    def write(self, row: Row, source: str) -> Chat:
        # Each value is set in once: a value that has a %name% in it is not looked at again.
        texts = [read_text(row, column, source) for column in self.columns]
        prompt = "".join(piece + text for piece, text in zip(self.pieces, texts[:-1], strict=False))
        question, answer = Message("user", prompt + self.before), Message("assistant", "")
        if texts[-1].strip():
            answer = Message("assistant", self.lead + texts[-1] + self.pieces[-1])
        return Chat((question, answer))


@dataclass(frozen=True, slots=True)
class FormatFile:
    """A file of formats."""

    name: str
    entries: tuple[_Entry, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that an entry names, sorted."""
        return tuple(sorted({column for entry in self.entries for column in entry.columns}))

    @property
    def prompt(self) -> tuple[str, ...]:
        """What stands around a user's words, by the entry that asks for nothing else; () if there is none."""
        for entry in self.entries:
            if len(entry.asked) == 1:
                return (*entry.pieces[:-2], entry.before)
        return ()

    def parse(self, row: Row, source: str) -> Chat:
        """Return prompt and answer by the entry with the most columns that are in the row and not blank.

        An answer may be blank, and is not trained then.

        Raises:
            DataError: a column is no string, no entry fits, or two fit equally.
        """
        for column in self.columns:
            if row.get(column) is not None:
                read_text(row, column, source)
        filled = {column for column in self.columns if str(row.get(column) or "").strip()}
        fits = [e for e in self.entries if e.asked <= filled and row.get(e.columns[-1]) is not None]
        most = max((len(set(entry.columns)) for entry in fits), default=0)
        best = [entry for entry in fits if len(set(entry.columns)) == most]
        if not best:
            raise DataError(f"{source}: row has {self._describe(row, filled)}")
        if len(best) > 1:
            keys = quoted([",".join(dict.fromkeys(entry.columns)) for entry in best])
            raise DataError(
                f"{source}: row fits the entries {keys} of {self.name} equally; leave one of them."
            )
        return best[0].write(row, source)

    def _describe(self, row: Row, filled: set[str]) -> str:
        entries = "; ".join(f"'{','.join(dict.fromkeys(entry.columns))}'" for entry in self.entries)
        others = [column for column in row if column not in self.columns]
        guesses = {column: did_you_mean(column, self.columns) for column in others}
        hints = "".join(f" {column!r}?{guess}" for column, guess in guesses.items() if guess)
        blank = [column for column in self.columns if column in row and column not in filled]
        empty = f" (blank: {quoted(blank)})" if blank else ""
        return f"columns {quoted(list(row))}{empty}; {Path(self.name).name} has the entries {entries}.{hints}"


def read(name: str) -> FormatFile:
    """Return the formats in a file.

    Raises:
        ConfigError: it cannot be read, or is no object of columns and how they are written.
    """
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"format {name}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"format {name}: cannot be read ({error}).") from None
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{name}:{error.lineno}: malformed JSON at column {error.colno}: {error.msg}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: JSON that cannot be read: {error}.") from None
    example = '{"instruction,output": "Q: %instruction%\\nA: %output%"}'
    if not isinstance(entries, dict) or not entries:
        raise ConfigError(f"{name}: expected an object such as {example}, found {kind(entries)}.")
    return FormatFile(name, tuple(_read_entry(key, value, name) for key, value in entries.items()))


def _read_entry(key: str, template: object, name: str) -> _Entry:
    where = f"{name}: entry {key!r}"
    if not isinstance(template, str):
        raise ConfigError(f"{where}: expected how the columns are written, a string; found {kind(template)}.")
    try:
        f"{key}{template}".encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{where} has half a surrogate pair; write the whole character.") from None
    columns = [column.strip() for column in key.split(",") if column.strip()]
    pieces = re.split(f"%({'|'.join(map(re.escape, columns))})%", template) if columns else []
    missing = [column for column in columns if column not in pieces[1::2]]
    if missing or not columns:
        wanted = " ".join(f"%{column}%" for column in missing) or "the name of a column"
        raise ConfigError(
            f"{where}: {wanted} is not in its text {_shorten(template)!r}.{_hint(missing, template)}"
        )
    return _Entry(tuple(pieces[::2]), tuple(pieces[1::2]))


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(missing: Sequence[str], template: str) -> str:
    written = re.findall(r"%(\w+)%", template)
    return next((did_you_mean(column, written) for column in missing if did_you_mean(column, written)), "")
