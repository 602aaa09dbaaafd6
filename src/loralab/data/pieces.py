"""Rows on their way to examples, divided into passages and gathered into parts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loralab.data.chunk import Passage, passages
from loralab.data.fields import Row
from loralab.data.types import Chat, Text

__all__ = ["Counts", "Piece", "divide", "in_parts"]

_ROWS = 1024
"""Rows that are tokenized at a time. More would need more memory, and fewer leave threads without work."""
_CHARACTERS = 1 << 21
"""And no more characters than this, unless it is one row."""


@dataclass(slots=True)
class Counts:
    """What became of the rows of one source."""

    name: str
    rows: int = 0
    """Rows that it has."""
    drawn: int = 0
    """Those that the sample, the weight and the split leave to this data set."""
    passages: int = 0
    """What these were divided into by `hard_cut_string`; conversations are not divided."""
    used: int = 0
    """Passages that gave examples."""
    rejected: int = 0
    """Passages that gave none; `rejected` of the data set says why."""
    cut: int = 0
    """Rows of which only the first `cutoff_length` tokens are trained on."""
    weight: float = 1.0
    """How many times an epoch has each row."""
    unread: Sequence[str] = ()
    """Files or splits that lie beside those that were read."""


class Piece(NamedTuple):
    """A row, or a passage of one, on its way."""

    counts: Counts
    place: str
    """The row's."""
    source: str
    """Its own: that of the row, and which passage it is."""
    row: Row
    item: Text | Chat
    content: str
    """What it says, in one string."""
    copies: int
    """How many times an epoch has it."""
    short: bool = False
    """Whether it has fewer characters than `min_chars`."""


def divide(piece: Piece, hard_cut_string: str, min_chars: int) -> Iterator[Piece]:
    """Yield the passages of a document in their order; a conversation is one piece."""
    if isinstance(piece.item, Chat) or not (hard_cut_string or min_chars):
        yield piece
        return
    kept, left_out = passages(piece.item.text, hard_cut_string, min_chars)
    if not left_out:
        # A blank document has no passages; it is counted like other blank ones.
        yield from (_passage_of(piece, passage) for passage in kept) if kept else [piece]
        return
    long = set(kept)
    for passage in passages(piece.item.text, hard_cut_string)[0]:
        yield _passage_of(piece, passage)._replace(short=passage not in long)


def _passage_of(piece: Piece, passage: Passage) -> Piece:
    text, source = passage.text, f"{piece.place}, line {passage.line}"
    return piece._replace(source=source, row={"text": text}, item=Text(text), content=text)


def in_parts(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield the pieces in lists that are small enough to be tokenized at once."""
    part: list[Piece] = []
    characters = 0
    for piece in pieces:
        part.append(piece)
        characters += len(piece.content)
        if len(part) == _ROWS or characters >= _CHARACTERS:
            yield part
            part, characters = [], 0
    if part:
        yield part
