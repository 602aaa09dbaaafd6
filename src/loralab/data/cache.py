"""What was made of a data file stays on disk, under the hash of all that it was made of.

An entry is a folder ``examples/<key>/`` of flat arrays, which are mapped into memory rather than read, and
``facts.json``, which has the rest. It is written whole or not at all. An entry that is damaged, and a folder
that cannot be read or written, are the same as none. Beyond a limit the entries that were not used for the
longest time are deleted.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import tokenizers
import transformers
from numpy.typing import NDArray

from loralab.errors import CheckpointError, ConfigError
from loralab.files import cache_folder, new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Entry", "Filled", "cache_limit", "code_digest", "entry_path", "read_entry", "write_entry"]

T = TypeVar("T")

_LIMIT_GB = 2.0
_ABANDONED = 24 * 3600.0
"""The seconds after which a folder that is still under its temporary name was left by a process that died."""


class Entry(NamedTuple):
    """Arrays and JSON values."""

    arrays: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any]


class Filled(NamedTuple):
    """What was written to a folder: dtype and length of each array's file, and JSON values beside them."""

    shapes: Mapping[str, tuple[str, int]]
    facts: Mapping[str, Any]


class _NotKept(Exception):
    """Leads out of a folder that is not to stay."""


def entry_path(file: str, settings: Mapping[str, Any], tokenizer: "PreTrainedTokenizerFast") -> Path | None:
    """Return where the entry of a data file is or would be; its name is the hash of all that it is made of.

    It is made of the file, the settings, the tokenizer, and the code and libraries that make it. None means
    that nothing is to be kept: LORALAB_CACHE_GB is 0, there is no home folder, the tokenizer's chat template
    reads the clock, or a part of the tokenizer or our code is not there as text to be hashed.

    Args:
        file: what identifies the data: the hash of its bytes and its name.

    Raises:
        ConfigError: LORALAB_CACHE_GB is not a number of gigabytes.
    """
    folder = cache_folder()
    template = json.dumps(tokenizer.chat_template, sort_keys=True)
    if not cache_limit() or folder is None or "strftime_now" in template:
        return None
    code, serialized = code_digest(Path(__file__).parent), _serialize(tokenizer)
    if code is None or serialized is None:
        return None
    made_of = {
        "code": code,
        "libraries": [tokenizers.__version__, transformers.__version__],
        "file": file,
        "settings": dict(settings),
        "tokenizer": [type(tokenizer).__name__, hashlib.sha256(serialized.encode()).hexdigest()],
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "split_special_tokens": tokenizer.split_special_tokens,
        "template": template,
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    return folder / "examples" / key


def code_digest(folder: Path) -> str | None:
    """Return the hash of the Python files there, or None if there are none.

    So an entry is never older than the code, which a version number, to be raised by hand, could not promise.
    """
    files = sorted(folder.rglob("*.py"))
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return hashlib.sha256("".join(digests).encode()).hexdigest() if files else None


def read_entry(path: Path, read: Callable[[Entry], T]) -> T | None:
    """Return what `read` makes of the entry there, its arrays read-only and mapped into memory.

    None means that nothing sound is there. Checked are the facts against their hash, the size of each array,
    and what `read` answers with a ValueError. The arrays' values are not: that would take reading them all.
    """
    try:
        text, _, digest = (path / "facts.json").read_text(encoding="utf8").rpartition("\n")
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            return None
        kept = json.loads(text)
        arrays = {}
        for name, (dtype, length) in kept["arrays"].items():
            file = path / name
            if file.stat().st_size != np.dtype(dtype).itemsize * length:
                return None
            # As a plain array: each slice of a memmap costs microseconds more.
            arrays[name] = np.asarray(np.memmap(file, dtype, mode="r", shape=(length,)))
        made = read(Entry(arrays, kept["facts"]))
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return made


def write_entry(path: Path, fill: Callable[[Path], Filled | None], read: Callable[[Entry], T]) -> T | None:
    """Let `fill` write arrays of one dimension to a folder, keep them there, and return them as `read_entry`.

    None means that they are not kept: `fill` gave none, or they exceed the limit, the disk is full, or the
    folder cannot be written.
    """
    with contextlib.suppress(CheckpointError, _NotKept), new_folder(path) as folder:
        filled = fill(folder)
        # Another process may have been faster; one that puts the same there at this moment fails one of the
        # two.
        if filled is None or read_entry(path, read) is not None:
            raise _NotKept
        if sum(np.dtype(dtype).itemsize * length for dtype, length in filled.shapes.values()) > cache_limit():
            raise _NotKept
        text = json.dumps({"arrays": dict(filled.shapes), "facts": dict(filled.facts)})
        digest = hashlib.sha256(text.encode()).hexdigest()
        (folder / "facts.json").write_text(f"{text}\n{digest}", encoding="utf8")
    with contextlib.suppress(OSError):
        _prune(path.parent, cache_limit())
    return read_entry(path, read)


def cache_limit() -> float:
    """Return the bytes that the cache may have.

    Raises:
        ConfigError: LORALAB_CACHE_GB is not a number of gigabytes.
    """
    text = os.environ.get("LORALAB_CACHE_GB") or str(_LIMIT_GB)
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise ConfigError(f"LORALAB_CACHE_GB is {text!r}; expected a number of gigabytes, or 0 for no cache.")
    return limit * 1e9


def _serialize(tokenizer: "PreTrainedTokenizerFast") -> str | None:
    backend = tokenizer.backend_tokenizer
    # These two are left from the last call, and the next one sets them anew.
    backend.no_truncation()
    backend.no_padding()
    try:
        text: str = backend.to_str()
    except Exception as error:
        # There is no narrower type.
        if "cannot be serialized" not in str(error):
            raise
        return None
    return text


def _prune(entries: Path, limit: float) -> None:
    """Delete the entries that were used the longest time ago until all fit `limit`, and what a crash left."""
    used: list[tuple[float, int, Path]] = []
    for folder in entries.iterdir():
        with contextlib.suppress(OSError):
            changed = folder.stat().st_mtime
            if re.fullmatch(r"[0-9a-f]{64}", folder.name):
                used.append((changed, sum(file.stat().st_size for file in folder.iterdir()), folder))
            elif re.fullmatch(r"\.[0-9a-f]{64}\..*", folder.name) and time.time() - changed > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
    total = sum(size for _, size, _ in used)
    for _, size, folder in sorted(used)[:-1]:
        if total <= limit:
            return
        # Under its temporary name a reader finds all of it or nothing.
        gone = folder.with_name(f".{folder.name}.old")
        with contextlib.suppress(OSError):
            os.replace(folder, gone)
            total -= size
        shutil.rmtree(gone, ignore_errors=True)
