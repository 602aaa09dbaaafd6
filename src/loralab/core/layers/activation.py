"""Which adapters of a model run."""

from dataclasses import dataclass

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
        repeat, rest = divmod(count, len(names)) if names else (0, 1)
        if rest:
            raise AdapterError(f"adapter_names has {len(names)} entries for a batch of {count} rows.")
        return repeat

    def rows_of(self, name: str, count: int) -> list[int]:
        """Return the rows of a mixed batch of `count` that run with an adapter. Raises as `repeats`."""
        repeat = self.repeats(count)
        return [i * repeat + k for i, row in enumerate(self.rows or ()) if row == name for k in range(repeat)]

    def forget(self, name: str) -> None:
        """Let an adapter run no more."""
        self.names = tuple(other for other in self.names if other != name)
