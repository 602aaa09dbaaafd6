"""A run is a directory. Everything that is known of a run is in it; see ``docs/run-folder.md``."""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralab.errors import CheckpointError, ConfigError, did_you_mean
from loralab.files import append_line, write_json, write_text
from loralab.training.config import RunConfig, check, read_toml
from loralab.training.events import Event

__all__ = ["RunFolder", "RunState", "find_run", "list_runs", "unused_name"]


@dataclass(frozen=True)
class RunState:
    """``run.json``: what a run is doing."""

    state: str = "running"
    """running, paused, finished, interrupted or failed."""
    pid: int = 0
    started: float = 0.0
    """Seconds since 1970."""
    heartbeat: float = 0.0
    """When the running process last wrote, in seconds since 1970."""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    """The last evaluation's loss, or else the last step's."""
    note: str = ""
    """Why it failed."""

    @property
    def alive(self) -> bool:
        """Whether a process is at it, if it has not died since."""
        return self.state in ("running", "paused")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name, which is the folder's."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, each named by its step in six digits."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The folder of the finished adapter."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The folder of the finished model of a full fine-tune."""
        return self.path / "model"

    def checkpoint(self, step: int) -> Path:
        """Return the folder of one checkpoint."""
        return self.checkpoints / f"{step:06d}"

    def check_free(self, *, overwrite: bool) -> None:
        """Check that a new run may take this folder; with `overwrite`, also in the place of an old run.

        Raises:
            ConfigError: there is a run of that name, it is running, the folder is no run, or it would lie in
                a file.
        """
        _check_folder(self.path.parent)
        if not self.path.exists():
            return
        if not (self.path / "config.toml").is_file():
            raise ConfigError(f"{self.path} exists and is no run; choose another --name or --runs.")
        if not overwrite:
            raise ConfigError(
                f"there is a run {self.name!r} in {self.path.parent} already; go on with "
                f"'loralab resume {self.name}', choose another --name, or replace it with --overwrite."
            )
        if self.state().alive:
            raise ConfigError(
                f"run {self.name!r} is running now, as process {self.state().pid}; stop it first."
            )

    def config(self) -> RunConfig:
        """Return the run's settings.

        Raises:
            ConfigError: the file is missing or damaged.
        """
        path = self.path / "config.toml"
        return check(read_toml(path), where=str(path))

    def plan(self) -> dict[str, Any]:
        """Return ``plan.json``, what was worked out before the run began; empty where there is none yet."""
        path = self.path / "plan.json"
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise CheckpointError(f"{path}: damaged ({error}).") from None
        return values

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the run for this process while the block lasts; the system lets go when the process ends.

        A process's id would not do: in a container the next process often has the same one.

        Raises:
            ConfigError: another process holds it.
        """
        with (self.path / ".lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # What was opened may be of a run that was replaced before it was locked.
                held = os.path.samestat(os.fstat(handle.fileno()), os.stat(handle.name))
            except (BlockingIOError, FileNotFoundError):
                held = False
            if not held:
                raise ConfigError(f"run {self.name!r} is running now; stop it first.")
            yield

    def _is_held(self) -> bool:
        try:
            with (self.path / ".lock").open() as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def state(self) -> RunState:
        """Return what the run is doing. One whose process is gone is interrupted, whatever it wrote last.

        Raises:
            CheckpointError: ``run.json`` is missing or damaged.
        """
        path = self.path / "run.json"
        try:
            state = RunState(**json.loads(path.read_text(encoding="utf8")))
        except FileNotFoundError:
            return RunState(state="interrupted")
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged ({error}).") from None
        if state.alive and not self._is_held():
            return dataclasses.replace(state, state="interrupted")
        return state

    def write_state(self, state: RunState) -> None:
        """Write ``run.json``, stamped with this process and the time."""
        state = dataclasses.replace(state, pid=os.getpid(), heartbeat=time.time())
        write_json(self.path / "run.json", dataclasses.asdict(state))

    def append(self, event: Event) -> None:
        """Append an event to ``events.jsonl``."""
        self.append_line("events.jsonl", {"time": round(time.time(), 3), **event.to_dict()})

    def append_line(self, file: str, value: dict[str, Any]) -> None:
        """Append one JSON line to a file of the run."""
        append_line(self.path / file, json.dumps(value, ensure_ascii=False))

    def write_lines(self, file: str, values: Iterable[dict[str, Any]]) -> None:
        """Write a file of JSON lines, whole or not at all."""
        write_text(self.path / file, "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values))

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events written so far; a line that a crash cut short is passed over."""
        path = self.path / "events.jsonl"
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def find_run(runs: str | Path, name: str) -> RunFolder:
    """Return the run called `name`.

    Raises:
        ConfigError: there is none; the nearest names are offered.
    """
    folder = RunFolder(Path(runs) / name)
    if not name or not os.path.isfile(folder.path / "config.toml"):
        names = [run.name for run in list_runs(runs)]
        raise ConfigError(
            f"there is no run {name!r} in {runs}; runs there: {', '.join(names) or 'none'}."
            + did_you_mean(name, names)
        )
    return folder


def list_runs(runs: str | Path) -> list[RunFolder]:
    """Return the runs in a folder, the oldest first.

    Raises:
        ConfigError: the folder is a file.
    """
    _check_folder(Path(runs))
    paths = [path.parent for path in Path(runs).glob("[!.]*/config.toml")]
    return [RunFolder(path) for path in sorted(paths, key=lambda p: ((p / "config.toml").stat().st_mtime, p))]


def unused_name(runs: str | Path, stem: str, taken: Collection[str] = ()) -> str:
    """Return `stem` as a run's name, with the first number that makes it a new one, none of those `taken`.

    Raises:
        ConfigError: `runs` is a file.
    """
    names = {run.name for run in list_runs(runs)} | set(taken)
    plain = re.sub(r"[^\w.-]+|\.\.+", "-", stem).strip("-.")[:60] or "run"
    candidates = (plain if n == 1 else f"{plain}-{n}" for n in itertools.count(1))
    return next(name for name in candidates if name not in names and not (Path(runs) / name).exists())


def _check_folder(runs: Path) -> None:
    if runs.is_file():
        raise ConfigError(f"{runs}: is a file; --runs takes the folder that holds the runs.")
