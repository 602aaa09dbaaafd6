"""A model's safetensors files read piece by piece, without building the model.

Tensors are read with plain file reads, not through a memory map: a mapped page counts as the process's
memory for as long as the map lives, and a few rows at a time are all that is ever wanted.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from loralab.errors import ModelError
from loralab.models.demo import BASE as DEMO_BASE
from loralab.models.load import DEMO

__all__ = ["INDEX_FILE", "WEIGHTS_FILE", "Checkpoint", "Stored", "find_checkpoint"]

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """The place of its first byte in the file."""


class Checkpoint:
    """The tensors of a model folder by name. Only the files' headers are read until a tensor is asked for.

    Raises:
        ModelError: no safetensors there, or a file is missing, truncated or malformed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.files = _files(self.folder)
        self.tensors: dict[str, Stored] = {}
        for file in self.files:
            self.tensors |= _header(file)

    @property
    def config(self) -> dict[str, Any]:
        """What ``config.json`` says; empty where there is none."""
        path = self.folder / "config.json"
        if not path.is_file():
            return {}
        try:
            values = json.loads(path.read_text(encoding="utf8"))
        except ValueError as error:
            raise ModelError(f"{path}: not valid JSON ({error}).") from None
        return values if isinstance(values, dict) else {}

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """Return the rows `first` to `last` (all, by default) of a tensor, as new memory."""
        stored = self.tensors[name]
        shape = stored.shape
        skipped = 0
        if shape and (first or last is not None):
            first, last, _ = slice(first, last).indices(shape[0])
            width = torch.Size(shape[1:]).numel() * stored.dtype.itemsize
            skipped, shape = first * width, (max(0, last - first), *shape[1:])
        data = torch.empty(torch.Size(shape).numel() * stored.dtype.itemsize, dtype=torch.uint8)
        with stored.file.open("rb", buffering=0) as file:
            file.seek(stored.start + skipped)
            view = memoryview(data.numpy())  # type: ignore[arg-type]
            while view:
                read = file.readinto(view)
                if not read:
                    raise ModelError(f"{stored.file}: ends within {name!r}; copy it again.")
                view = view[read:]
        return data.view(stored.dtype).view(shape)


def find_checkpoint(name: str) -> Path:
    """Return the folder of the model `name`: a folder, "demo", or a hub id.

    Raises:
        ModelError: there is none.
    """
    if Path(name).is_dir():
        return Path(name)
    if name == DEMO:
        return Path(DEMO_BASE)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        try:
            return Path(
                snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model"])
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
            pass
    raise ModelError(f"{name}: neither a folder here nor a model on the hub (or it cannot be reached).")


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names: Mapping[str, str] = json.loads(index.read_text(encoding="utf8"))["weight_map"]
            files = [folder / name for name in sorted(set(names.values()))]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{index}: expected a JSON object with a 'weight_map'.") from None
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(f"{folder}: {', '.join(missing)} is missing; is the copy complete?")
    if not files:
        hint = ""
        if any(folder.glob("*.bin")):
            hint = " Its weights are a pickle; save the model again with safetensors."
        raise ModelError(f"{folder}: no *.safetensors there.{hint}")
    return files


def _header(file: Path) -> dict[str, Stored]:
    """Return what a safetensors file holds: 8 bytes of length, a JSON header, then the data."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header is cut off")
            entries = json.loads(opened.read(length))
        found = {
            name: Stored(file, _DTYPES[e["dtype"]], tuple(e["shape"]), 8 + length + e["data_offsets"][0])
            for name, e in entries.items()
            if name != "__metadata__"
        }
        end = max((e["data_offsets"][1] for n, e in entries.items() if n != "__metadata__"), default=0)
        if file.stat().st_size < 8 + length + end:
            raise ValueError("its data is cut off")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(
            f"{file}: not a complete safetensors file ({error}). It may be truncated; copy it again."
        ) from None
    return found
