"""Trackio, kept on this machine: ``trackio show`` opens its page."""

import contextlib
import os
import sys
from contextvars import Context
from typing import Any

from loralab.training.config import RunConfig
from loralab.training.events import Event
from loralab.training.folder import RunFolder
from loralab.training.reporters import numbers

NEEDS = "trackio>=0.43"


class Reporter:
    """Logs numbers by step."""

    def __init__(self, folder: RunFolder, config: RunConfig) -> None:
        # A context of its own, as trackio ends the run that it finds in the present one, and runs that train
        # together are runs of one process. What it prints is not for the standard output.
        with contextlib.redirect_stdout(sys.stderr):
            self._run = Context().run(_begin, folder, config)

    def add(self, event: Event) -> None:
        """Log the event's numbers."""
        found = numbers(event)
        if found:
            self._run.log(found, step=event.step)

    def close(self) -> None:
        """Write what is left."""
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


def _begin(folder: RunFolder, config: RunConfig) -> Any:
    import trackio

    return trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", "loralab"),
        name=folder.name,
        config=config.model_dump(exclude_none=True),
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
