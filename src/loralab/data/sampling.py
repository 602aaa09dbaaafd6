"""Conversations as they were read, to hold examples to."""

from itertools import islice

from loralab.data.formats import get
from loralab.data.mixture import parse_sources
from loralab.data.naming import Renaming
from loralab.data.reading import Reading
from loralab.data.types import Chat

__all__ = ["first_conversations"]

_ROWS = 64


def first_conversations(data: str, reading: Reading, format: str) -> list[tuple[str, Chat]]:
    """Return the first conversations of each source, at most 64, with where they stand.

    Args:
        format: the data's format, as a `Dataset` names it.

    Raises:
        DataError: the data cannot be read.
    """
    entry = get(format)
    found = []
    for source in parse_sources(data):
        renaming = Renaming(reading.renames())
        for place, row in islice(source.kind.read(source.path, source.name), _ROWS):
            item = entry.parse(renaming.apply(row, place), place)
            if isinstance(item, Chat):
                found.append((place, item))
    return found
