"""Examples laid end to end in a few flat arrays: small in memory, and as they stand on disk."""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from loralab.data.types import Example

__all__ = ["Builder", "Examples"]

Array = NDArray[Any]

_DTYPES = {"ids": "int32", "trained": "uint8", "ends": "int64", "sources": "uint8", "source_ends": "int64"}
_CODES = {"int32": "i", "uint8": "B", "int64": "q"}
_PART = 1 << 20
"""Tokens that are held in memory before they go to disk."""
_NAMES = "surrogateescape"
"""How Python reads the names of files that are not UTF-8."""


class Examples(Sequence[Example]):
    """A sequence that makes an `Example` when it is asked for one.

    `arrays` are, for N examples of T tokens in all:

    - ``ids``, int32 [T];
    - ``trained``, uint8 [T]: the loss weights, each 0 or 1;
    - ``ends``, int64 [N + 1]: 0, and where in these two each example ends;
    - ``sources``, uint8: the sources in UTF-8;
    - ``source_ends``, int64 [N + 1]: the same for them.

    Raises:
        ValueError: they are not that, or do not fit each other.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = {name: arrays[name] for name in _DTYPES}
        found = {name: str(array.dtype) for name, array in self.arrays.items()}
        if found != _DTYPES:
            raise ValueError(f"the arrays of examples are {found}, expected {_DTYPES}.")
        ends, tokens = self.arrays["ends"], len(self.arrays["ids"])
        source_ends, characters = self.arrays["source_ends"], len(self.arrays["sources"])
        if len(ends) != len(source_ends) or len(self.arrays["trained"]) != tokens:
            raise ValueError("the arrays of examples have lengths that do not fit each other.")
        if not _is_partition(ends, tokens) or not _is_partition(source_ends, characters):
            raise ValueError("the ends of the examples do not divide their tokens.")

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "Examples":
        """Return these examples.

        Raises:
            ValueError: a weight is neither 0 nor 1.
        """
        builder = Builder()
        for example in examples:
            builder.add(example)
        return cls(builder.arrays())

    def __len__(self) -> int:
        return len(self.arrays["ends"]) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...

    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        number = range(len(self))[index]
        start, end = self.arrays["ends"][number : number + 2]
        first, last = self.arrays["source_ends"][number : number + 2]
        return Example(
            tuple(self.arrays["ids"][start:end].tolist()),
            tuple(self.arrays["trained"][start:end].astype(float).tolist()),
            self.arrays["sources"][first:last].tobytes().decode("utf8", _NAMES),
        )

    @property
    def lengths(self) -> list[int]:
        """The tokens of each example, without making any."""
        return [end - start for start, end in pairwise(self.arrays["ends"].tolist())]

    @property
    def tokens(self) -> int:
        """The tokens of all examples."""
        return len(self.arrays["ids"])

    @property
    def trained_tokens(self) -> int:
        """The tokens with a loss weight."""
        return int(np.count_nonzero(self.arrays["trained"]))


def _is_partition(ends: Array, total: int) -> bool:
    if not len(ends) or ends[0] or ends[-1] != total:
        return False
    return not (np.diff(ends) < 0).any()


class Builder:
    """Lays examples one behind the other: in memory, or part by part in the files of a folder.

    When a file cannot be written, or all would exceed `limit` bytes, it goes on in memory with what it has.
    """

    def __init__(self, folder: Path | None = None, limit: float = math.inf) -> None:
        self._folder = folder
        self._limit = limit
        self._columns = {name: _Column(dtype) for name, dtype in _DTYPES.items()}
        self._columns["ends"].buffer.append(0)
        self._columns["source_ends"].buffer.append(0)
        self.examples = 0
        self.tokens = 0
        self.trained_tokens = 0
        self._characters = 0

    @property
    def in_memory(self) -> bool:
        """Whether all that was added is in memory."""
        return self._folder is None

    def add(self, example: Example) -> None:
        """Lay one more.

        Raises:
            ValueError: a weight is neither 0 nor 1.
        """
        weights = example.weights
        trained = weights.count(1.0)
        if weights.count(0.0) + trained != len(weights):
            raise ValueError(f"{example.source}: loss weights other than 0 and 1 cannot be kept.")
        source = example.source.encode("utf8", _NAMES)
        self.examples += 1
        self.tokens += len(example.ids)
        self.trained_tokens += trained
        self._characters += len(source)
        self._columns["ids"].buffer.extend(example.ids)
        self._columns["trained"].buffer.frombytes(bytes(map(bool, weights)))
        self._columns["sources"].buffer.frombytes(source)
        self._columns["ends"].buffer.append(self.tokens)
        self._columns["source_ends"].buffer.append(self._characters)
        if len(self._columns["ids"].buffer) >= _PART:
            self._put_away()

    def arrays(self) -> dict[str, Array]:
        """Return all as arrays in memory."""
        self.recall()
        return {name: np.frombuffer(column.buffer, column.dtype) for name, column in self._columns.items()}

    def shapes(self) -> dict[str, tuple[str, int]]:
        """Return the dtype and the length of each file in the folder; none if all is in memory."""
        self._put_away()
        if self.in_memory:
            return {}
        return {name: (column.dtype, column.written) for name, column in self._columns.items()}

    def recall(self) -> None:
        """Bring back to memory what is on disk, and stay there."""
        if self._folder is not None:
            for name, column in self._columns.items():
                column.recall(self._folder / name)
        self._folder = None

    def _put_away(self) -> None:
        if self._folder is None:
            return
        if sum(column.nbytes for column in self._columns.values()) > self._limit:
            self.recall()
            return
        try:
            for name, column in self._columns.items():
                column.put_away(self._folder / name)
        except OSError:
            self.recall()


class _Column:
    """One of the arrays: its beginning in a file, the rest in memory."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.buffer = array(_CODES[dtype])
        self.written = 0

    @property
    def nbytes(self) -> int:
        return (self.written + len(self.buffer)) * self.buffer.itemsize

    def put_away(self, file: Path) -> None:
        with file.open("ab") as stream:
            self.buffer.tofile(stream)
        self.written += len(self.buffer)
        self.buffer = array(self.buffer.typecode)

    def recall(self, file: Path) -> None:
        whole = array(self.buffer.typecode)
        if self.written:
            with file.open("rb") as stream:
                whole.fromfile(stream, self.written)
        whole.extend(self.buffer)
        self.buffer, self.written = whole, 0
