"""What the columns of a row mean: one file a format, and the folder is the registry.

A format is a module with `COLUMNS` (the columns that a row must have), `OPTIONAL` (those it may have),
`TEMPLATE` (the named template that suits it when the tokenizer has none of its own) and
`parse(row, source)`, which returns a `Text` or a `Chat` and raises `DataError` for a row that is not one.
A file of text-generation-webui's formats is one too, named by its path.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loralab.data.fields import Row, quoted
from loralab.data.types import Chat, Text
from loralab.errors import ConfigError, DataError, did_you_mean

__all__ = ["Format", "check_columns", "detect", "get", "is_file", "names"]


@dataclass(frozen=True, slots=True)
class Format:
    """A module of this folder, or a file of formats, as the flow sees it."""

    name: str
    columns: tuple[str, ...]
    optional: tuple[str, ...]
    template: str
    parse: Callable[[Row, str], Text | Chat]
    prompt: tuple[str, ...] = ()
    """What a user's words stand between in a prompt, for a format that writes prompts itself: the prompt is
    ``words.join(prompt)``. Empty for one that does not, or whose prompts are of several columns."""


def names() -> list[str]:
    """Return the names of all formats, sorted; files of formats have none."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))


def is_file(name: str) -> bool:
    """Return whether `name` is that of a file of formats, whose contents the examples depend on."""
    return name.lower().endswith(".json")


def get(name: str) -> Format:
    """Return the format of that name.

    Raises:
        ConfigError: there is none, or the file is none of formats.
    """
    if is_file(name):
        return _read_file(name)
    known = names()
    if name not in known:
        raise ConfigError(
            f"unknown data format {name!r}; known are {quoted(known)}, and the path of a .json file of "
            f"text-generation-webui's formats.{did_you_mean(name, known)}"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    return Format(name, module.COLUMNS, module.OPTIONAL, module.TEMPLATE, module.parse)


def _read_file(name: str) -> Format:
    file = importlib.import_module(f"{__name__}._file").read(name)
    return Format(name, (), file.columns, "bare", file.parse, file.prompt)


def detect(columns: Iterable[str], source: str) -> Format:
    """Return the one format whose required columns are all among `columns`; more columns do no harm.

    Raises:
        DataError: no format matches, or more than one does.
    """
    present = list(columns)
    known = [get(name) for name in names()]
    matches = [entry for entry in known if set(entry.columns) <= set(present)]
    if len(matches) > 1:
        found = quoted([entry.name for entry in matches])
        choices = " or ".join(f"--format {entry.name}" for entry in matches)
        raise DataError(f"{source}: the columns fit the formats {found}; say which: {choices}.")
    if not matches:
        needs = "; ".join(f"format '{entry.name}' needs {quoted(entry.columns)}" for entry in known)
        hints = _hints(present, {column for entry in known for column in entry.columns})
        raise DataError(f"{source}: row has columns {quoted(present)}; {needs}.{hints}")
    return matches[0]


def choose_format(name: str, row: Row, source: str) -> Format:
    """Return the format of that name, or for "auto" the one of the row's columns, which the row must have.

    Raises:
        ConfigError: there is none of that name.
        DataError: the row has not its columns, or no format or several have the row's.
    """
    entry = detect(row, source) if name == "auto" else get(name)
    check_columns(entry, row, source)
    return entry


def check_columns(entry: Format, columns: Iterable[str], source: str) -> None:
    """Hold a row to the format of its file.

    Raises:
        DataError: a required column is missing.
    """
    present = list(columns)
    missing = [column for column in entry.columns if column not in present]
    if missing:
        hints = _hints([column for column in present if column not in entry.optional], missing)
        raise DataError(
            f"{source}: row has columns {quoted(present)}; format '{entry.name}' needs "
            f"{quoted(entry.columns)}.{hints}"
        )


def _hints(columns: Iterable[str], known: Iterable[str]) -> str:
    wanted = set(known)
    guesses = {column: did_you_mean(column, sorted(wanted)) for column in columns if column not in wanted}
    return "".join(f" {column!r}?{guess}" for column, guess in guesses.items() if guess)
