"""The `data` setting: several sources, each whole, as a sample, or with a weight.

``a.jsonl + b.csv#500 + c.parquet*0.5``: all of a, 500 rows of b, half the rows of c. Which rows is drawn by a
hash of the row, so it stays the same when rows are moved, and nearly so when some are added.
"""

import hashlib
import json
import math
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loralab.data.fields import Row
from loralab.data.sources import Kind, find
from loralab.data.splitting import fraction_of, number_of
from loralab.errors import ConfigError, DataError

__all__ = ["Source", "States", "digest_of", "parse_sources", "states_of"]

_JOIN = " + "
_ROWS, _WEIGHT = r"#(?P<rows>[^#*/]*)", r"\*(?P<weight>[^#*/]*)"
_WAYS = tuple(re.compile(f"(?P<path>.*){end}") for end in ("", _WEIGHT, _ROWS, _ROWS + _WEIGHT))
"""How a source is written; the first of them under which something exists is the one."""
_USUAL = re.compile(f"(?P<path>.*?)(?:{_ROWS})?(?:{_WEIGHT})?")
_READ = 1 << 20
_MOST = 1000
"""The largest weight: every copy of a row is kept, and has its place in the order of an epoch."""

States = list[tuple[str, int, int]]
"""For each file its path, its size and when it was written, in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file, folder or dataset, and what is taken of it."""

    path: Path
    name: str
    """What its rows are said to come from."""
    kind: Kind
    rows: int | None = None
    """How many rows are drawn; None: all."""
    weight: float = 1.0
    """How many times an epoch has each row."""

    def read(self) -> Iterator[tuple[str, Row, int]]:
        """Yield every row with where it stands and how many times an epoch has it, which may be 0.

        Raises:
            DataError: as the kind of data raises it.
            ConfigError: it has fewer rows than are to be drawn.
        """
        drawn = self._sample() if self.rows is not None else None
        whole, rest = int(self.weight), self.weight % 1
        for place, row in self.kind.read(self.path, self.name):
            copies = whole + (rest > 0 and fraction_of(_content(row), "weight") < rest)
            yield place, row, copies if drawn is None or drawn(row) else 0

    def _sample(self) -> Callable[[Row], bool]:
        """Return what says of each row, asked in order, whether it is among those drawn."""
        wanted = self.rows or 0
        numbers = array("Q")
        for _, row in self.kind.read(self.path, self.name):
            numbers.append(number_of(_content(row), "sample"))
        if len(numbers) < wanted:
            raise ConfigError(f"{self.path}#{wanted}: there are {len(numbers)} rows; leave out '#{wanted}'.")
        ordered = np.sort(np.frombuffer(numbers, "uint64"))
        limit = int(ordered[wanted - 1])
        # Rows that are the same have the same number; of those at the limit, the first are taken.
        ties = wanted - int(np.searchsorted(ordered, ordered[wanted - 1]))

        def drawn(row: Row) -> bool:
            nonlocal ties
            number = number_of(_content(row), "sample")
            if number == limit and ties:
                ties -= 1
                return True
            return number < limit

        return drawn


def parse_sources(data: str) -> tuple[Source, ...]:
    """Return the sources that the `data` setting names. What exists under a name as it stands is taken so.

    Raises:
        ConfigError: a weight or a number of rows is none, or a source is named twice.
        DataError: nothing lies there, or nothing that can be read.
    """
    sources = [_parse(part) for part in _split(data)]
    names = [source.name for source in sources]
    paths = [str(source.path) for source in sources]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"{path} is named twice; write {path}*2 to have each row twice an epoch.")
    return tuple(
        source if names.count(source.name) == 1 else _renamed(source, str(source.path)) for source in sources
    )


def _split(data: str) -> list[str]:
    """Return the parts between the pluses, those that are of one file's name together."""
    pieces = data.split(_JOIN)
    parts: list[str] = []
    start = 0
    while start < len(pieces):
        ends = range(len(pieces), start, -1)
        end = next((end for end in ends if _existing(_JOIN.join(pieces[start:end]).strip())), start + 1)
        parts.append(_JOIN.join(pieces[start:end]).strip())
        start = end
    if not all(parts):
        raise ConfigError(f"data is {data!r}: between two pluses stands a file, and one is missing.")
    return parts


def _existing(part: str) -> re.Match[str] | None:
    found = (way.fullmatch(part) for way in _WAYS)
    return next((match for match in found if match and os.path.exists(match["path"])), None)


def _parse(part: str) -> Source:
    # A name may have a line break in it, on which no pattern here matches.
    found = _existing(part) or _USUAL.fullmatch(part)
    given = found.groupdict() if found else {"path": part}
    drawn, times = given.get("rows"), given.get("weight")
    rows = None if drawn is None else _rows(drawn, part)
    weight = 1.0 if times is None else _weight(times, part)
    path = Path(given["path"])
    return Source(path, path.name or path.resolve().name, find(path), rows, weight)


def _rows(text: str, part: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text) or not int(text):
        raise ConfigError(f"{part}: behind '#' stands a number of rows, as train.jsonl#500; found {text!r}.")
    return int(text)


def _weight(text: str, part: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(
            f"{part}: behind '*' stands how many times an epoch has each row, a number above 0, as "
            f"train.jsonl*2 or train.jsonl*0.5; found {text!r}. Several files are named with ' + ' between."
        )
    if weight > _MOST:
        raise ConfigError(
            f"{part}: an epoch has each row up to {_MOST} times, found {text!r}; for more passes over the "
            "data raise --epochs."
        )
    return weight


def _renamed(source: Source, name: str) -> Source:
    return Source(source.path, name, source.kind, source.rows, source.weight)


def _content(row: Row) -> str:
    return json.dumps(row, sort_keys=True)


def states_of(sources: Sequence[Source]) -> States:
    """Return the state of every file, to see later whether one was written to meanwhile.

    Raises:
        DataError: one cannot be looked at.
    """
    states = []
    for source in sources:
        for file in source.kind.files(source.path):
            try:
                found = file.stat()
            except OSError as error:
                raise DataError(f"{file}: cannot be read: {error.strerror}.") from error
            states.append((str(file), found.st_size, found.st_mtime_ns))
    return states


def digest_of(sources: Sequence[Source]) -> str:
    """Return the hash of all bytes of the sources, their names, and what is taken of them.

    Raises:
        DataError: a file cannot be read.
    """
    made_of = []
    for source in sources:
        hashes = [(file.name, _hash(file)) for file in source.kind.files(source.path)]
        made_of.append((source.name, source.rows, source.weight, hashes))
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while part := stream.read(_READ):
                digest.update(part)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}.") from error
    return digest.hexdigest()
