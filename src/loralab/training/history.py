"""What happened in a run: its ``events.jsonl``, read as events and as curves."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from loralab.training.events import Evaluated, Event, Finished, Sampled, Started, Stepped
from loralab.training.smoothing import smooth

__all__ = ["History", "read_event", "read_history"]


@dataclass
class History:
    """A run's course up to now, each step once: of steps that a crash had it make twice, the later counts."""

    started: Started | None = None
    steps: list[Stepped] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    samples: list[Sampled] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def smoothed(self) -> list[float]:
        """The smoothed loss after each step."""
        return smooth(step.loss for step in self.steps)

    def add(self, event: Event) -> None:
        """Take in what happened next."""
        if isinstance(event, Started):
            self.started = self.started or event
            self.steps = _until(self.steps, event.step)
            self.evaluations = _until(self.evaluations, event.step)
            self.samples = _until(self.samples, event.step)
        elif isinstance(event, Stepped):
            self.steps.append(event)
        elif isinstance(event, Evaluated):
            self.evaluations.append(event)
        elif isinstance(event, Sampled):
            self.samples.append(event)
        elif isinstance(event, Finished):
            self.finished = event


def read_history(rows: Iterable[dict[str, Any]]) -> History:
    """Return the course of a run from the lines of its ``events.jsonl``, see `RunFolder.events`."""
    history = History()
    for row in rows:
        event = read_event(row)
        if event is not None:
            history.add(event)
    return history


def read_event(row: dict[str, Any]) -> Event | None:
    """Return the event of a line, the opposite of `Event.to_dict`; None for one that is not known here."""
    kind = {cls.__name__.lower(): cls for cls in Event.__subclasses__()}.get(str(row.get("event")))
    if kind is None:
        return None
    known = {f.name for f in dataclasses.fields(kind)}
    try:
        return kind(**{key: value for key, value in row.items() if key in known})
    except TypeError:
        # A run of an earlier version, whose events had fewer fields.
        return None


def _until(events: list[Any], step: int) -> list[Any]:
    return [event for event in events if event.step <= step]
