"""What happens in a run, written into its folder as it happens."""

import dataclasses
import resource
import sys
import time

from loralab.training.events import Event, Finished
from loralab.training.folder import RunFolder, RunState

__all__ = ["Recorder", "peak_memory"]

_BEAT = 2.0


class Recorder:
    """Writes a run's events, and now and then what the run is doing."""

    def __init__(self, folder: RunFolder, steps: int) -> None:
        self.folder = folder
        self.state = RunState(started=time.time(), steps=steps)
        self._beat = 0.0
        folder.write_state(self.state)

    def add(self, event: Event) -> None:
        """Write an event down."""
        self.folder.append(event)
        loss = getattr(event, "loss", None)
        loss = self.state.loss if loss is None else loss
        finished = isinstance(event, Finished)
        state = "finished" if finished else "running"
        self.state = dataclasses.replace(self.state, step=event.step, loss=loss, state=state)
        if finished or time.monotonic() - self._beat > _BEAT:
            self.folder.write_state(self.state)
            self._beat = time.monotonic()

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
