"""What `datasets` wrote with `save_to_disk`. Of several splits "train" is read, or the one that is named
behind a colon: ``folder:validation``. Rows are counted from 1."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from loralab.data.fields import Row, quoted
from loralab.data.sources._arrow import rows_of
from loralab.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

WHAT = "a folder that `datasets` saved"


def takes(path: Path) -> bool:
    """Return whether `datasets` wrote the folder."""
    folder, _ = _split(path)
    return _is_saved(folder)


def files(path: Path) -> list[Path]:
    """Return the tables' files."""
    return [Path(entry["filename"]) for entry in _open(path).cache_files]


def unread(path: Path) -> list[str]:
    """Return the names of the other splits."""
    folder, split = _split(path)
    return [f"split {name}" for name in _splits(folder) if name != (split or "train")]


def read(path: Path, name: str) -> Iterator[tuple[str, Row]]:
    """Yield each row; `DataError` if the folder is damaged, or has no such split."""
    return rows_of(_open(path), name)


def _is_saved(folder: Path) -> bool:
    marks = ("dataset_dict.json", "state.json")
    return os.path.isdir(folder) and any(os.path.exists(folder / mark) for mark in marks)


def _split(path: Path) -> tuple[Path, str]:
    if os.path.exists(path):
        return path, ""
    name, _, split = path.name.partition(":")
    return path.with_name(name) if name else path, split


def _splits(folder: Path) -> list[str]:
    if not os.path.exists(folder / "dataset_dict.json"):
        return []
    return sorted(entry.name for entry in folder.iterdir() if os.path.exists(entry / "state.json"))


def _open(path: Path) -> "Dataset":
    # It takes a second to import, which no other kind of data should wait for.
    import datasets

    folder, split = _split(path)
    splits = _splits(folder)
    if splits:
        wanted = split or "train"
        if wanted not in splits:
            hint = did_you_mean(wanted, splits)
            raise DataError(
                f"{folder}: has no split {wanted!r}; its splits are {quoted(splits)}. "
                f"Name one behind a colon: {folder}:{splits[0]}.{hint}"
            )
        folder = folder / wanted
    elif split:
        raise DataError(f"{folder}: has no splits; leave out ':{split}'.")
    try:
        return datasets.Dataset.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: cannot be read: {' '.join(str(error).split())}") from None
