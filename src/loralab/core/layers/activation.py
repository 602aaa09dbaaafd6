"""Which adapters of a model run."""

from dataclasses import dataclass

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

    def forget(self, name: str) -> None:
        """Let an adapter run no more."""
        self.names = tuple(other for other in self.names if other != name)
