"""The course of runs on the screen: a bar on a terminal, lines in a pipe. Needs no torch."""

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from statistics import fmean
from textwrap import shorten
from typing import Protocol

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from loralab.cli.output import Screen, duration
from loralab.training.events import (
    Evaluated,
    Event,
    Failed,
    Finished,
    Noted,
    Paused,
    Sampled,
    Saved,
    Started,
    Stepped,
)

__all__ = ["Length", "View", "bars", "view"]


@dataclass(frozen=True)
class Length:
    """How long a run is, and what it does along the way."""

    steps: int
    eval_steps: int | None = None
    """It is evaluated every so many steps; None: never."""
    sample_steps: int | None = None
    """It answers prompts every so many steps; None: never."""
    evaluation: float = 0.0
    """Seconds of an evaluation as they were forecast, until one was seen."""
    sampling: float = 0.0
    """Seconds of answering the prompts once, likewise."""


def bars(screen: Screen, *, transient: bool = False) -> Progress:
    """Return bars with a name, how many are done, and a text "now"; `transient` ones leave nothing behind."""
    return Progress(
        TextColumn("[bold cyan]{task.description}", markup=True),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]}"),
        console=screen.console,
        transient=transient,
    )


class View(Protocol):
    """Shows what happens in runs."""

    def show(self, name: str, event: Event, at: float | None = None) -> None:
        """Show an event of a run; `at` is when it happened, in seconds since 1970, if that is not now."""

    def close(self) -> None:
        """Leave the screen as it is."""


class _Lines:
    """Plain lines: about twenty for the steps, and one for every evaluation; of several runs, with names."""

    def __init__(self, screen: Screen, lengths: Mapping[str, Length]) -> None:
        self.screen = screen
        self.lengths = lengths
        self.paces = {name: _Pace(length) for name, length in lengths.items()}
        self.paused: set[str] = set()

    def show(self, name: str, event: Event, at: float | None = None) -> None:
        steps, pace = self.lengths[name].steps, self.paces[name]
        if isinstance(event, Started):
            pace.begin()
        pace.add(event, at)
        if isinstance(event, Started):
            if event.step:
                self._say(name, f"going on from step {event.step}")
        elif isinstance(event, Stepped):
            if event.step % max(1, steps // 20) == 0 or event.step == steps:
                self._say(name, f"step {event.step}/{steps}  {pace.text(event)}")
        elif isinstance(event, Evaluated):
            self._say(name, f"step {event.step}/{steps}  {_evaluation(event)}")
        elif isinstance(event, Sampled):
            self._say(name, f"step {event.step}/{steps}  {_sample(event)}")
        elif isinstance(event, Failed):
            self._say(name, f"failed: {event.note}")
        elif isinstance(event, Noted):
            self._say(name, f"warning: {event.note}")
        elif isinstance(event, Paused) and name not in self.paused:
            self._say(name, f"paused at step {event.step}; go on with: loralab resume {name}")
        (self.paused.add if isinstance(event, Paused) else self.paused.discard)(name)

    def _say(self, name: str, text: str) -> None:
        self.screen.say(f"{name}: {text}" if len(self.lengths) > 1 else text)

    def close(self) -> None:
        pass


class _Bars:
    """For each run a progress bar with the loss, the rate and the time left."""

    def __init__(self, screen: Screen, lengths: Mapping[str, Length]) -> None:
        self.paces = {name: _Pace(length) for name, length in lengths.items()}
        self.evaluations = dict.fromkeys(lengths, "")
        self.progress = bars(screen)
        self.many = len(lengths) > 1
        self.bars: dict[str, TaskID] = {}
        for name, length in lengths.items():
            title = escape(name) if self.many else "training"
            self.bars[name] = self.progress.add_task(title, total=length.steps, now="")
        self.progress.start()

    def show(self, name: str, event: Event, at: float | None = None) -> None:
        bar, pace = self.bars[name], self.paces[name]
        if isinstance(event, Started):
            pace.begin()
        pace.add(event, at)
        if isinstance(event, Started):
            self.progress.update(bar, completed=event.step)
        elif isinstance(event, Stepped):
            now = pace.text(event) + self.evaluations[name]
            self.progress.update(bar, completed=event.step, now=now)
        elif isinstance(event, Evaluated):
            self.evaluations[name] = f"  eval {event.loss:.3f}"
            self._print(name, f"step {event.step:>5}  {_evaluation(event)}")
        elif isinstance(event, Sampled):
            self._print(name, f"step {event.step:>5}  {_sample(event)}")
        elif isinstance(event, Failed):
            self.progress.update(bar, now="failed")
            self._print(name, f"failed: {event.note}")
        elif isinstance(event, Noted):
            self._print(name, f"warning: {event.note}")
        elif isinstance(event, Paused):
            self.progress.update(bar, now=f"paused; go on with: loralab resume {name}")
        elif isinstance(event, Saved | Finished):
            self.progress.refresh()

    def _print(self, name: str, text: str) -> None:
        line = f"{name}: {text}" if self.many else text
        self.progress.console.print(line, style="dim", markup=False)

    def close(self) -> None:
        self.progress.stop()


class _Silent:
    def show(self, name: str, event: Event, at: float | None = None) -> None:
        pass

    def close(self) -> None:
        pass


class _Pace:
    """Rate and time left: of the steps, and of the evaluations and samplings that are still to come."""

    def __init__(self, length: Length) -> None:
        self.length = length
        self.begin()

    def begin(self) -> None:
        """Forget the steps before: the run begins, or goes on after a while."""
        self.tokens, self.seconds = 0, 0.0
        self._now: float | None = None
        self._first = True
        self._steps: list[float] = []
        self._evaluations: list[float] = []
        self._samplings: dict[int, float] = {}

    def add(self, event: Event, at: float | None) -> None:
        """Count what happened at a time, in seconds since 1970; None of every event is now."""
        before, self._now = self._now, time.monotonic() if at is None else at
        # A clock may be set back.
        gap = max(0.0, self._now - before) if before is not None else 0.0
        if isinstance(event, Stepped):
            self.tokens += event.tokens
            self.seconds += event.seconds
            rest = max(0.0, gap - event.seconds)
            if before is not None and _is_time(self.length.eval_steps, event.step, self.length.steps):
                self._evaluations.append(rest)
                rest = 0.0
            if not self._first:
                self._steps.append(event.seconds + rest)
            self._first = False
        elif isinstance(event, Sampled):
            self._samplings[event.step] = self._samplings.get(event.step, 0.0) + gap
        elif isinstance(event, Paused):
            self._now = None
        elif self._steps:
            self._steps[-1] += gap

    def text(self, event: Stepped) -> str:
        """Return the loss and the pace after a step, and the time left once there were two."""
        rate = self.tokens / max(self.seconds, 1e-9)
        left = f"  {duration(self._left(event.step))} left" if self._steps else ""
        now = f"loss {event.smoothed:.3f}  lr {event.learning_rate:.1e}  norm {event.grad_norm:.2g}"
        return f"{now}  {rate:,.0f} tokens/s{left}"

    def _left(self, step: int) -> float:
        length = self.length
        # The evaluation of a step is over when the step is told, and its samples are still to come.
        evaluations = _to_come(length.eval_steps, step, length.steps)
        samplings = _to_come(length.sample_steps, step - 1, length.steps)
        return (
            (length.steps - step) * fmean(self._steps)
            + evaluations * fmean(self._evaluations or [length.evaluation])
            + samplings * fmean(list(self._samplings.values()) or [length.sampling])
        )


def _is_time(every: int | None, step: int, steps: int) -> bool:
    return every is not None and (step % every == 0 or step == steps)


def _to_come(every: int | None, step: int, steps: int) -> int:
    """Return how many times there are after a step, of those of every so many steps and at the end."""
    return 0 if every is None or step >= steps else math.ceil(steps / every) - step // every


def _evaluation(event: Evaluated) -> str:
    return f"eval loss {event.loss:.4f}{' (best so far)' if event.best else ''}"


def _sample(event: Sampled) -> str:
    return f"{shorten(event.prompt, 60)} -> {shorten(event.text, 160)}"


def view(lengths: Mapping[str, Length], screen: Screen) -> closing[View]:
    """Show runs, of which `lengths` has the names, while the block lasts."""
    shown: View = _Silent()
    if screen.mode == "rich":
        shown = _Bars(screen, lengths)
    elif screen.mode == "plain":
        shown = _Lines(screen, lengths)
    return closing(shown)
