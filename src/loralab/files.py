"""Files that are written whole or not at all: to a temporary name, flushed to disk, then renamed."""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loralab.errors import CheckpointError

__all__ = ["append_line", "cache_folder", "new_folder", "write_file", "write_json", "write_text"]

_NO_ROOM = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed",
}


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then put that file in the place of `path`.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            temporary.chmod(0o666 & ~_umask())
            _flush(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text. Raises as `write_file`."""
    write_file(path, lambda temporary: temporary.write_bytes(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented. Raises as `write_file`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def append_line(path: Path, text: str) -> None:
    """Append a line of UTF-8 text; one that an earlier process left unfinished is ended first.

    Raises:
        CheckpointError: the disk is full or the file cannot be written.
    """
    with _explained(path), path.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(text.encode() + b"\n")


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, replacing what was there, if the block succeeds.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; `path` is as it was.
        FileExistsError: `path` is there, and not to be replaced.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for file in temporary.rglob("*"):
                # Some libraries write files that only their owner may read.
                file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
                _flush(file)
            if not replace:
                _put_in_place(temporary, path)
            elif path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
                os.replace(path, old / path.name)
                os.replace(temporary, path)
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename a folder in one step with the check that there is nothing in the new place."""
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise FileExistsError(f"{path} is there already") from None


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise _failure(path, error.errno) from None
    except Exception as error:
        # That of safetensors wraps the system's error; the number is in its text only.
        number = re.search(r"os error (\d+)", str(error))
        if type(error).__name__ != "SafetensorError" or number is None:
            raise
        raise _failure(path, int(number[1])) from None


def _failure(path: Path, number: int) -> CheckpointError:
    if number in _NO_ROOM:
        free = shutil.disk_usage(_existing(path)).free / 1e6
        return CheckpointError(
            f"{path}: {_NO_ROOM[number]} ({free:.1f} MB free); nothing was written there. "
            "Free some space and run the command again."
        )
    return CheckpointError(f"{path}: cannot be written ({os.strerror(number)}); nothing was written there.")


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cache_folder() -> Path | None:
    """Return where what can be made again is kept: LORALAB_CACHE, or loralab/ where the system keeps such.

    None: there is no home folder.
    """
    named, home = os.environ.get("LORALAB_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    folder = Path(home) if home else Path(os.path.expanduser("~"), ".cache")
    return folder / "loralab" if folder.is_absolute() else None
