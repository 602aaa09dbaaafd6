"""A dataset of the Hugging Face hub, by its id; where there is no network, from what was loaded before.

"owner/name" is its "train" split, "owner/name:validation" another one, and "owner/name:config:train" that of
a configuration. Rows are counted from 1.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from loralab.data.fields import Row
from loralab.data.sources._arrow import rows_of
from loralab.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

WHAT = "a dataset's id on the hub"

_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(:[\w.-]+){0,2}")


def takes(path: Path) -> bool:
    """Return whether this looks like an id, and not like a path that is mistaken."""
    return (
        _ID.fullmatch(path.as_posix()) is not None
        and not os.path.exists(path)
        and not os.path.isdir(path.parent)
    )


def files(path: Path) -> list[Path]:
    """Return the files that `datasets` keeps of it."""
    return [Path(entry["filename"]) for entry in _open(path).cache_files]


def unread(path: Path) -> list[str]:
    """Return nothing: a split is asked for by name."""
    return []


def read(path: Path, name: str) -> Iterator[tuple[str, Row]]:
    """Yield each row; `DataError` if there is no such dataset, or none that is here without a network."""
    return rows_of(_open(path), name)


def _open(path: Path) -> "Dataset":
    # It takes a second to import, which no other kind of data should wait for.
    import datasets

    name, *rest = path.as_posix().split(":")
    config = rest[0] if len(rest) == 2 else None
    split = rest[-1] if rest else "train"
    try:
        return datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: no such file, and as a dataset of the hub it cannot be read: {reason}"
        ) from None
