"""What happens in a run, written into its folder as it happens."""

import dataclasses
import resource
import sys
import time
from collections.abc import Iterable

from loralab.training.config import RunConfig
from loralab.training.events import Event, Finished, Interrupted, Noted, Paused, Saved
from loralab.training.folder import RunFolder, RunState
from loralab.training.reporters import Reporters

__all__ = ["Recorder", "peak_memory"]

_BEAT = 2.0
_STATES: dict[type[Event], str] = {Finished: "finished", Interrupted: "interrupted", Paused: "paused"}


class Recorder:
    """Writes a run's events, and now and then what the run is doing."""

    def __init__(self, folder: RunFolder, config: RunConfig, steps: int) -> None:
        self.folder = folder
        self._reporters = Reporters(folder, config)
        self.state = RunState(started=time.time(), steps=steps)
        self._beat = 0.0
        folder.write_state(self.state)

    def add(self, event: Event) -> None:
        """Write an event down; of a pause only that it begins."""
        waits = isinstance(event, Paused)
        if not (waits and self.state.state == "paused"):
            self.folder.append(event)
            self._note(self._reporters.add(event))
        loss = getattr(event, "loss", None)
        loss = self.state.loss if loss is None else loss
        state = _STATES.get(type(event), "running")
        changed = state != self.state.state
        self.state = dataclasses.replace(self.state, step=event.step, loss=loss, state=state)
        if changed or isinstance(event, Saved) or time.monotonic() - self._beat > _BEAT:
            self.folder.write_state(self.state)
            self._beat = time.monotonic()

    def close(self) -> None:
        """Let the reporters send what is left."""
        self._note(self._reporters.close())

    def _note(self, notes: Iterable[str]) -> None:
        for note in notes:
            self.folder.append(Noted(self.state.step, note))

    def interrupt(self) -> None:
        """Write down that the run was stopped, unless it is finished."""
        if self.state.state != "finished":
            self.folder.write_state(dataclasses.replace(self.state, state="interrupted"))

    def fail(self, error: Exception) -> None:
        """Write down that the run failed, and why."""
        self.folder.write_state(dataclasses.replace(self.state, state="failed", note=str(error)))


def peak_memory() -> int:
    """Return the largest resident memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
