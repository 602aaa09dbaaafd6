"""The setting `columns`: names that a format asks for in place of those that the data has."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from loralab.data.fields import Row, quoted
from loralab.errors import ConfigError, DataError, did_you_mean

__all__ = ["Renaming"]


@dataclass
class Renaming:
    """Renames the columns of one row after another, and knows which names were never there."""

    names: Mapping[str, str]
    """The name in the data -> the name that a format asks for."""
    columns: set[str] = field(default_factory=set)
    """All names that the data has."""

    def apply(self, row: Row, place: str) -> Row:
        """Return the row with the other names.

        Raises:
            DataError: it would have two columns of one name.
        """
        if not self.names:
            return row
        self.columns.update(row)
        for old, new in self.names.items():
            if old in row and new in row and new not in self.names:
                raise DataError(
                    f"{place}: columns {new + '=' + old!r}: the row has a column {new!r} already; "
                    "rename that one too."
                )
        return {self.names.get(column, column): value for column, value in row.items()}

    def check_seen(self, place: str) -> None:
        """Hold the names to the columns of the rows so far.

        Raises:
            ConfigError: one has not come yet.
        """
        for old, new in self.names.items():
            if old not in self.columns:
                hint = did_you_mean(old, sorted(self.columns))
                raise ConfigError(
                    f"columns {new + '=' + old!r}: {place} has no column {old!r}; "
                    f"found are {quoted(sorted(self.columns))}.{hint}"
                )
