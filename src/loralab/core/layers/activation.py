"""Which adapters of a model run."""

from dataclasses import dataclass
from itertools import accumulate

from loralab.errors import AdapterError

__all__ = ["BASE", "Activation"]

BASE = "__base__"
"""In a mixed batch, the name of a row that no adapter changes."""


@dataclass
class Activation:
    """Which adapters run. One object is shared by all layers of a model, so switching touches no layer."""

    names: tuple[str, ...] = ()
    enabled: bool = True
    rows: tuple[str, ...] | None = None
    """In a mixed batch: the adapter of every row."""
    spans: tuple[int, ...] | None = None
    """In a mixed batch of one row: how many of its tokens each of `rows` is for, one behind the other."""

    @property
    def running(self) -> tuple[str, ...]:
        """The adapters that run for all of a batch."""
        return self.names if self.enabled and self.rows is None else ()

    @property
    def active(self) -> str | list[str]:
        """The name of the active adapter, or a list unless there is one."""
        return self.names[0] if len(self.names) == 1 else list(self.names)

    def repeats(self, count: int) -> int:
        """Return how many rows of a mixed batch of `count` stand for each of the caller's.

        A module may see several for each (beams, flattened tokens).

        Raises:
            AdapterError: the batch has no whole number of rows for each name.
        """
        names = self.rows or ()
        if self.spans is not None:
            raise AdapterError("a batch of spans is told apart by its tokens, not by its rows.")
        repeat, rest = divmod(count, len(names)) if names else (0, 1)
        if rest:
            raise AdapterError(f"adapter_names has {len(names)} entries for a batch of {count} rows.")
        return repeat

    def rows_of(self, name: str, count: int) -> list[int]:
        """Return the rows of a mixed batch of `count` that run with an adapter; with spans, the tokens.

        Raises as `repeats` and `check_spans`.
        """
        if self.spans is not None:
            self.check_spans(count)
            stops = accumulate(self.spans)
            places = zip(self.rows or (), self.spans, stops, strict=True)
            return [i for row, span, stop in places if row == name for i in range(stop - span, stop)]
        repeat = self.repeats(count)
        return [i * repeat + k for i, row in enumerate(self.rows or ()) if row == name for k in range(repeat)]

    def check_spans(self, count: int) -> None:
        """Raise AdapterError unless the spans are of `count` tokens in all."""
        if self.spans is not None and sum(self.spans) != count:
            raise AdapterError(f"spans have {sum(self.spans)} tokens in all for a batch of {count}.")

    def pieces(self) -> list[tuple[tuple[str, ...], int | None]]:
        """Return (the adapters that run, for how many tokens; None is all) for the parts of a batch."""
        if self.rows is None or not self.enabled or self.spans is None:
            return [(self.running, None)]
        return [((row,), span) for row, span in zip(self.rows, self.spans, strict=True)]

    def forget(self, name: str) -> None:
        """Let an adapter run no more."""
        self.names = tuple(other for other in self.names if other != name)
