"""A run on the screen that another process trains: its folder is read as it grows."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from loralab.cli.output import Screen
from loralab.cli.views import Length, view
from loralab.errors import ConfigError, TrainingError
from loralab.training.folder import RunFolder, list_runs
from loralab.training.history import read_event

__all__ = ["running", "watch"]

_LOOK = 0.3
"""Seconds between two looks at the file."""


def running(runs: str) -> RunFolder:
    """Return the run that is running.

    Raises:
        ConfigError: none is, or several are.
    """
    alive = [run for run in list_runs(runs) if run.state().alive]
    if len(alive) == 1:
        return alive[0]
    names = ", ".join(run.name for run in alive)
    raise ConfigError(
        f"several runs are running: {names}; say which." if alive else f"no run in {runs} is running."
    )


def watch(folder: RunFolder, screen: Screen) -> None:
    """Show the course of a run up to now, and then as it goes on, until it ends or Ctrl-C.

    Raises:
        TrainingError: the run failed.
    """
    try:
        with view({folder.name: _length(folder)}, screen) as shown:
            for row in follow(folder):
                event = read_event(row)
                screen.data({key: value for key, value in row.items() if key != "time"})
                if event is not None:
                    shown.show(folder.name, event, row.get("time"))
    except KeyboardInterrupt:
        screen.say(f"left; run {folder.name!r} goes on. Stop it with: loralab stop {folder.name}")
        return
    state = folder.state()
    if state.state == "failed":
        raise TrainingError(f"run {folder.name!r} failed: {state.note}")
    more = f"; go on with: loralab resume {folder.name}" if state.state == "interrupted" else ""
    screen.say(f"run {folder.name!r} is {state.state} at step {state.step}/{state.steps}{more}")


def _length(folder: RunFolder) -> Length:
    plan, config = folder.plan(), folder.config()
    return Length(
        plan.get("steps") or folder.state().steps,
        plan.get("eval_steps") if config.eval_data or config.eval_split else None,
        plan.get("sample_steps") if config.sample_prompts else None,
    )


def follow(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run's ``events.jsonl``, then each new one, while a process is at the run."""
    place, path = 0, folder.path / "events.jsonl"
    while True:
        # Asked for first, so that what a process writes before it ends is read after it.
        alive = folder.state().alive
        if path.is_file():
            with path.open("rb") as stream:
                stream.seek(place)
                whole = stream.read().rpartition(b"\n")
            place += len(whole[0] + whole[1])
            for line in whole[0].split(b"\n"):
                # One that a crash cut short is passed over.
                with contextlib.suppress(ValueError):
                    yield json.loads(line)
        if not alive:
            return
        time.sleep(_LOOK)
