"""Adapter files from folders that a server may read, with nothing believed that was not checked."""

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from loralab.adapters.habits import HABITS_FILE, TEMPLATE_FILE, Habits, read_habits
from loralab.adapters.peft_format import CONFIG_FILE, WEIGHTS_FILE, own_keys
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.errors import AdapterError
from loralab.serving.errors import BadRequest, Forbidden, TooLarge, UnknownModel

__all__ = ["Limits", "Roots"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_CONFIG_BYTES = 1 << 20
_PATTERN = re.compile(r"[\w.^$\\-]{1,256}")
_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Limits:
    """What an adapter may be at most."""

    file_bytes: int = 2 << 30
    header_bytes: int = 8 << 20
    tensors: int = 100_000
    rank: int = 256


class Roots:
    """The folders that adapters may come from, and nowhere else."""

    def __init__(self, folders: Sequence[Path], limits: Limits | None = None) -> None:
        self.folders = tuple(Path(os.path.realpath(folder)) for folder in folders)
        self.limits = limits or Limits()

    def names(self) -> dict[str, Path]:
        """Return the adapters that lie there now, by name; where two have one name, the first folder's."""
        found: dict[str, Path] = {}
        for folder in self.folders:
            for name, path in _in_folder(folder):
                found.setdefault(name, path)
        return found

    def find(self, name: str) -> Path:
        """Return the folder of the adapter called `name`.

        Raises:
            UnknownModel: there is none.
        """
        if NAME.fullmatch(name) and ".." not in name:
            for folder in self.folders:
                for inside in (folder / name, *([folder] if _name_of(folder) == name else [])):
                    path = _adapter_of(inside)
                    if path is not None and self.holds(path / CONFIG_FILE):
                        return path
        raise UnknownModel(f"there is no model or adapter {name!r} here.")

    def holds(self, path: Path) -> bool:
        """Return whether a path, with all its links followed, leads into one of the folders."""
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(folder) and real != folder for folder in self.folders)

    def admit(self, path: str | Path) -> Path:
        """Return the real folder behind a path that somebody asked for.

        Raises:
            Forbidden: it leads out of the folders that may be read.
            UnknownModel: no adapter is there.
        """
        text = str(path)
        if "\0" in text or not text:
            raise BadRequest("the path of an adapter is empty or holds a NUL character.")
        candidates = [Path(text)] if os.path.isabs(text) else [folder / text for folder in self.folders]
        inside = [Path(os.path.realpath(candidate)) for candidate in candidates if self.holds(candidate)]
        if not inside:
            raise Forbidden("the path leads out of the folders that adapters may come from.")
        for folder in inside:
            for place in (folder, folder / "adapter"):
                if (place / CONFIG_FILE).is_file():
                    return place
        raise UnknownModel(f"no adapter lies at that path (no {CONFIG_FILE}).")

    def read(self, folder: Path) -> Adapter:
        """Return the adapter in a folder of these.

        Raises:
            AdapterError: a file is missing, damaged, or no safetensors file of floating-point tensors.
            Forbidden: a file leads out of the folders that may be read.
            TooLarge: a file or the rank is over the limits.
        """
        where = folder.name if folder.name != "adapter" else folder.parent.name
        try:
            values = json.loads(self._bytes(folder / CONFIG_FILE, _CONFIG_BYTES))
        except (ValueError, RecursionError) as error:
            raise AdapterError(f"{where}/{CONFIG_FILE}: no JSON ({error}).") from None
        if not isinstance(values, dict) or "peft_type" not in values:
            raise AdapterError(f"{where}/{CONFIG_FILE}: expected a JSON object with 'peft_type': 'LORA'.")
        config = LoraConfig.from_dict(values, where=f"{where}/{CONFIG_FILE}")
        patterns = (*(config.rank_pattern or {}), *(config.alpha_pattern or {}))
        for pattern in patterns:
            if not _PATTERN.fullmatch(pattern):  # a regular expression can take for ever
                raise AdapterError(f"{where}: {pattern!r:.100} is no name of modules that is served.")
        ranks = [config.r, *(config.rank_pattern or {}).values()]
        if max(ranks) > self.limits.rank:
            raise TooLarge(f"{where}: its rank is {max(ranks)}, this server takes up to {self.limits.rank}.")
        weights = folder / WEIGHTS_FILE
        if not weights.exists():
            raise AdapterError(f"{where}: no {WEIGHTS_FILE}; other files of weights are not loaded.")
        data = self._bytes(weights, self.limits.file_bytes)
        self._check_header(data, f"{where}/{WEIGHTS_FILE}")
        try:
            tensors = load(data)
        except (SafetensorError, ValueError) as error:
            raise AdapterError(f"{where}/{WEIGHTS_FILE}: no complete safetensors file ({error}).") from None
        return Adapter(config, own_keys(tensors))

    def habits(self, folder: Path) -> Habits:
        """Return how the adapter in a folder of these was trained to be spoken to.

        Raises:
            AdapterError: its file is damaged.
            Forbidden: a file leads out of the folders that may be read.
        """
        for name in (HABITS_FILE, TEMPLATE_FILE):
            path = folder / name
            if path.exists() and not self.holds(path):
                raise Forbidden(f"{path.parent.name}/{name} leads out of the folders that may be read.")
        return read_habits(folder)

    def _bytes(self, path: Path, limit: int) -> bytes:
        """Return what is in a file; that it lies in the folders is checked on the file that was opened."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise AdapterError(f"{path.parent.name}/{path.name}: {error.strerror}.") from None
        try:
            found = os.fstat(handle)
            opened = Path(f"/proc/self/fd/{handle}")
            real = Path(os.readlink(opened)) if opened.exists() else Path(os.path.realpath(path))
            if not self.holds(real):
                raise Forbidden(f"{path.parent.name}/{path.name} leads out of the folders that may be read.")
            if not stat.S_ISREG(found.st_mode):
                raise AdapterError(f"{path.parent.name}/{path.name} is no plain file.")
            if found.st_size > limit:
                raise TooLarge(
                    f"{path.parent.name}/{path.name} has {found.st_size:,} bytes; the limit is {limit:,}."
                )
            with os.fdopen(handle, "rb", closefd=False) as file:
                return file.read(limit + 1)
        finally:
            os.close(handle)

    def _check_header(self, data: bytes, where: str) -> None:
        """Hold the header of a safetensors file to the limits and to the file before it is parsed further."""
        if len(data) < 8:
            raise AdapterError(f"{where}: cut off after {len(data)} bytes.")
        size = int.from_bytes(data[:8], "little")
        if size > self.limits.header_bytes:
            raise TooLarge(
                f"{where}: its header says {size:,} bytes; the limit is {self.limits.header_bytes:,}."
            )
        if size > len(data) - 8:
            raise AdapterError(f"{where}: cut off within its header.")
        try:
            header = json.loads(data[8 : 8 + size])
        except (ValueError, RecursionError) as error:
            raise AdapterError(f"{where}: its header is no JSON ({error}).") from None
        if not isinstance(header, dict) or len(header) > self.limits.tensors:
            raise AdapterError(f"{where}: its header is no table of up to {self.limits.tensors:,} tensors.")
        for key, entry in header.items():
            if key != "__metadata__":
                _check_entry(key, entry, len(data) - 8 - size, where)


def _check_entry(key: str, entry: Any, room: int, where: str) -> None:
    fits = (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and entry["dtype"] in _DTYPES
        and isinstance(entry.get("shape"), list)
        and isinstance(entry.get("data_offsets"), list)
        and len(entry["data_offsets"]) == 2
        and all(isinstance(n, int) and n >= 0 for n in (*entry["shape"], *entry["data_offsets"]))
    )
    if not fits:
        kinds = ", ".join(_DTYPES)
        raise AdapterError(f"{where}: {key!r:.100} is no tensor of {kinds} with a shape and a place.")
    start, end = entry["data_offsets"]
    if end - start != prod(entry["shape"]) * _DTYPES[entry["dtype"]] or end > room:
        raise AdapterError(f"{where}: {key!r:.100} does not fit into the file; it is cut off or damaged.")


def _in_folder(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield a folder that is itself an adapter or a run, else the adapters and runs that are its children."""
    alone = _adapter_of(folder)
    if alone is not None:
        yield _name_of(folder), alone
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if NAME.fullmatch(entry.name) and entry.is_dir():
            path = _adapter_of(Path(entry.path))
            if path is not None:
                yield entry.name, path


def _adapter_of(folder: Path) -> Path | None:
    """Return where the adapter of a folder lies: there, or, of a run, one below; None without one."""
    return next((path for path in (folder, folder / "adapter") if (path / CONFIG_FILE).is_file()), None)


def _name_of(folder: Path) -> str:
    """Return what an adapter in a folder is called: of a run's "adapter", the run's name."""
    return folder.parent.name if folder.name == "adapter" else folder.name
