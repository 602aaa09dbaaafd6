"""Parquet tables, read in parts, so a file may be larger than memory. Rows are counted from 1."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow
from pyarrow import parquet

from loralab.data.fields import Row
from loralab.data.sources._arrow import PART, numbered
from loralab.errors import DataError

SUFFIXES = (".parquet",)


def read(path: Path, name: str) -> Iterator[tuple[str, Row]]:
    """Yield each row: "train.parquet:row 3"; `DataError` if the file is damaged or has none."""
    try:
        with parquet.ParquetFile(path) as table:
            parts = table.iter_batches(batch_size=PART)
            yield from numbered((row for part in parts for row in part.to_pylist()), name)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
