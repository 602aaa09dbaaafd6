"""Examples laid end to end in a few flat arrays: small in memory, and as they stand on disk."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from loralab.data.types import Example

__all__ = ["Examples"]

Array = NDArray[Any]

_DTYPES = {"ids": "int32", "trained": "uint8", "ends": "int64", "sources": "uint8", "source_ends": "int64"}
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
        ids, ends, source_ends = array("i"), array("q", [0]), array("q", [0])
        trained, sources = bytearray(), bytearray()
        for example in examples:
            weights = example.weights
            if weights.count(0.0) + weights.count(1.0) != len(weights):
                raise ValueError(f"{example.source}: loss weights other than 0 and 1 cannot be kept.")
            ids.extend(example.ids)
            trained += bytes(map(bool, weights))
            sources += example.source.encode("utf8", _NAMES)
            ends.append(len(ids))
            source_ends.append(len(sources))
        return cls(
            {
                "ids": np.frombuffer(ids, _DTYPES["ids"]),
                "trained": np.frombuffer(trained, _DTYPES["trained"]),
                "ends": np.frombuffer(ends, _DTYPES["ends"]),
                "sources": np.frombuffer(sources, _DTYPES["sources"]),
                "source_ends": np.frombuffer(source_ends, _DTYPES["source_ends"]),
            }
        )

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
