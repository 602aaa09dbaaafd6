"""Files become rows: one file for each kind of data, and the folder is the registry.

A kind of file is a module with `SUFFIXES` (how their names end) and `read(path, name)`, which returns each
row with where it stands: ``("train.jsonl:118", {"prompt": ...})``. `name` is what the data is called there.
What a later line is guilty of is a `DataError` when the iterator comes to it.

Data that is no single file has in place of `SUFFIXES`:

- `WHAT`: what it is, in a few words;
- `takes(path)`: whether a path is that;
- `files(path)`: the files whose bytes are the data, in order;
- `unread(path)`: the names of what lies beside them and is left alone.
"""

import difflib
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from loralab.data.fields import Row, quoted
from loralab.errors import ConfigError, DataError, did_you_mean

__all__ = ["Kind", "find", "get", "names", "read_rows"]

_NEAR = 0.75
"""How alike the names of two files are before one is offered for the other, of 1."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A module of this folder, as the flow sees it."""

    name: str
    suffixes: tuple[str, ...]
    """How the names of such files end; none for data that is no single file."""
    what: str
    takes: Callable[[Path], bool]
    files: Callable[[Path], list[Path]]
    unread: Callable[[Path], list[str]]
    read: Callable[[Path, str], Iterator[tuple[str, Row]]]


def names() -> list[str]:
    """Return the names of all kinds, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def get(name: str) -> Kind:
    """Return the kind of that name.

    Raises:
        ConfigError: there is none.
    """
    known = names()
    if name not in known:
        raise ConfigError(
            f"unknown kind of data {name!r}; known are {quoted(known)}.{did_you_mean(name, known)}"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    if not hasattr(module, "SUFFIXES"):
        return Kind(name, (), module.WHAT, module.takes, module.files, module.unread, module.read)
    return _of_files(name, module)


def find(path: Path) -> Kind:
    """Return the kind of what lies there, or of the dataset of that name on the hub.

    Raises:
        DataError: nothing lies there, or nothing that can be read.
    """
    known = [get(name) for name in names()]
    # os.path answers no where Path raises, as for a name that is too long.
    exists, is_folder = os.path.exists(path), os.path.isdir(path)
    # A file that is missing is not asked for on the hub.
    if exists or path.suffix.lower() not in _suffixes(known):
        for kind in known:
            if kind.takes(path):
                return kind
    if is_folder:
        whole = "; ".join(kind.what for kind in known if not kind.suffixes)
        raise DataError(f"{path}: this is a folder; name a file in it. Read as a whole: {whole}.")
    if not exists:
        raise DataError(f"{path}: no such file.{did_you_mean(path.name, _alike(path))}")
    suffixes = ", ".join(_suffixes(known))
    raise DataError(f"{path}: files that end in '{path.suffix}' cannot be read; convert it to {suffixes}.")


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Return each row of what lies there with where it stands.

    Raises:
        DataError: it is missing, empty, without rows, of no known kind, not UTF-8, or malformed. What a later
            line is guilty of is raised when the iterator comes to it.
    """
    return find(path).read(path, path.name)


def _of_files(name: str, module: ModuleType) -> Kind:
    suffixes: tuple[str, ...] = module.SUFFIXES

    def takes(path: Path) -> bool:
        return path.suffix.lower() in suffixes and os.path.exists(path) and not os.path.isdir(path)

    return Kind(name, suffixes, ", ".join(suffixes), takes, lambda path: [path], lambda _: [], module.read)


def _suffixes(kinds: list[Kind]) -> list[str]:
    return [suffix for kind in kinds for suffix in kind.suffixes]


def _alike(path: Path) -> list[str]:
    """Return what lies there under a name like the path's; that both end in .jsonl makes no two alike."""
    beside = [entry.name for entry in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    stems = difflib.get_close_matches(path.stem, {Path(name).stem for name in beside}, cutoff=_NEAR)
    return [name for name in beside if Path(name).stem in stems]
