"""The course of runs on the screen: a bar on a terminal, lines in a pipe. Needs no torch."""

import time
from collections.abc import Mapping
from contextlib import closing
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

__all__ = ["View", "bars", "view"]


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

    def __init__(self, screen: Screen, steps: Mapping[str, int]) -> None:
        self.screen = screen
        self.steps = steps
        self.paces = {name: _Pace(count) for name, count in steps.items()}
        self.paused: set[str] = set()

    def show(self, name: str, event: Event, at: float | None = None) -> None:
        steps, pace = self.steps[name], self.paces[name]
        if isinstance(event, Started):
            pace.begin()
            if event.step:
                self._say(name, f"going on from step {event.step}")
        elif isinstance(event, Stepped):
            pace.add(event, at)
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
        self.screen.say(f"{name}: {text}" if len(self.steps) > 1 else text)

    def close(self) -> None:
        pass


class _Bars:
    """For each run a progress bar with the loss, the rate and the time left."""

    def __init__(self, screen: Screen, steps: Mapping[str, int]) -> None:
        self.paces = {name: _Pace(count) for name, count in steps.items()}
        self.evaluations = dict.fromkeys(steps, "")
        self.progress = bars(screen)
        self.many = len(steps) > 1
        self.bars: dict[str, TaskID] = {
            name: self.progress.add_task(escape(name) if self.many else "training", total=count, now="")
            for name, count in steps.items()
        }
        self.progress.start()

    def show(self, name: str, event: Event, at: float | None = None) -> None:
        bar = self.bars[name]
        if isinstance(event, Started):
            self.paces[name].begin()
            self.progress.update(bar, completed=event.step)
        elif isinstance(event, Stepped):
            pace = self.paces[name]
            pace.add(event, at)
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
    """Rate and time left, from the last steps and the clock, evaluations included."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.begin()

    def begin(self) -> None:
        """Forget the steps before: the run begins, or goes on after a while."""
        self.first: tuple[int, float] | None = None
        self.last = 0.0
        self.tokens = 0
        self.seconds = 0.0

    def add(self, event: Stepped, at: float | None) -> None:
        """Count a step that happened at a time, in seconds since 1970; None of every step is now."""
        self.last = time.monotonic() if at is None else at
        if self.first is None:
            self.first = (event.step, self.last)
        self.tokens += event.tokens
        self.seconds += event.seconds

    def text(self, event: Stepped) -> str:
        rate = self.tokens / max(self.seconds, 1e-9)
        left = ""
        if self.first is not None and event.step > self.first[0]:
            # A clock may be set back.
            a_step = max(0.0, self.last - self.first[1]) / (event.step - self.first[0])
            left = f"  {duration((self.steps - event.step) * a_step)} left"
        now = f"loss {event.smoothed:.3f}  lr {event.learning_rate:.1e}  norm {event.grad_norm:.2g}"
        return f"{now}  {rate:,.0f} tokens/s{left}"


def _evaluation(event: Evaluated) -> str:
    return f"eval loss {event.loss:.4f}{' (best so far)' if event.best else ''}"


def _sample(event: Sampled) -> str:
    return f"{shorten(event.prompt, 60)} -> {shorten(event.text, 160)}"


def view(steps: Mapping[str, int], screen: Screen) -> closing[View]:
    """Show runs, of which `steps` has the name and the number of steps, while the block lasts."""
    shown: View = _Silent()
    if screen.mode == "rich":
        shown = _Bars(screen, steps)
    elif screen.mode == "plain":
        shown = _Lines(screen, steps)
    return closing(shown)
