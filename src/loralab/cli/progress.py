"""A training run on the screen: a bar on a terminal, lines in a pipe, events as JSON."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from loralab.cli.output import Screen, duration
from loralab.training.events import Evaluated, Event, Finished, Saved, Started, Stepped
from loralab.training.run import Run

__all__ = ["follow", "runs_flag"]


class _Stop:
    """Set by the first Ctrl-C; the second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def follow(run: Run, screen: Screen) -> Finished:
    """Train `run`, show its course, and return its last event.

    The first Ctrl-C (or SIGTERM) finishes the step, saves and exits with code 130; the second stops at once.
    """
    with _stoppable() as stop, _view(run, screen) as view, closing(run.events()) as events:
        for event in events:
            screen.data(event.to_dict())
            view.show(event)
            if isinstance(event, Finished):
                return event
            if stop.asked:
                break
    name = run.folder.name
    screen.say(f"stopped and saved. Go on with: loralab resume {name}{runs_flag(run)}")
    sys.exit(130)


def runs_flag(run: Run) -> str:
    """Return the flag that finds `run` again: nothing while its runs lie in the usual folder."""
    return "" if run.config.runs == "runs" else f" --runs {run.config.runs}"


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    stop = _Stop()
    before = [(number, signal.signal(number, stop)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield stop
    finally:
        for number, handler in before:
            signal.signal(number, handler)


class _Lines:
    """Plain lines: about twenty for the steps, and one for every evaluation."""

    def __init__(self, screen: Screen, steps: int) -> None:
        self.screen = screen
        self.steps = steps
        self.every = max(1, steps // 20)
        self.pace = _Pace(steps)

    def show(self, event: Event) -> None:
        if isinstance(event, Started) and event.step:
            self.screen.say(f"going on from step {event.step}")
        elif isinstance(event, Stepped):
            self.pace.add(event)
            if event.step % self.every == 0 or event.step == self.steps:
                self.screen.say(f"step {event.step}/{self.steps}  {self.pace.text(event)}")
        elif isinstance(event, Evaluated):
            self.screen.say(f"step {event.step}/{self.steps}  {_evaluation(event)}")

    def close(self) -> None:
        pass


class _Bar:
    """A progress bar with the loss, the rate and the time left."""

    def __init__(self, screen: Screen, steps: int) -> None:
        self.steps = steps
        self.pace = _Pace(steps)
        self.evaluation = ""
        self.bar = Progress(
            TextColumn("[bold cyan]training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
            console=screen.console,
        )
        self.task: TaskID = self.bar.add_task("training", total=steps, now="")
        self.bar.start()

    def show(self, event: Event) -> None:
        if isinstance(event, Started):
            self.bar.update(self.task, completed=event.step)
        elif isinstance(event, Stepped):
            self.pace.add(event)
            self.bar.update(self.task, completed=event.step, now=self.pace.text(event) + self.evaluation)
        elif isinstance(event, Evaluated):
            self.evaluation = f"  eval {event.loss:.3f}"
            self.bar.console.print(f"step {event.step:>5}  {_evaluation(event)}", style="dim")
        elif isinstance(event, Saved | Finished):
            self.bar.refresh()

    def close(self) -> None:
        self.bar.stop()


class _Silent:
    def show(self, event: Event) -> None:
        pass

    def close(self) -> None:
        pass


class _Pace:
    """Rate and time left, from the last steps and the clock, evaluations included."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.first: tuple[int, float] | None = None
        self.tokens = 0
        self.seconds = 0.0
        self.total = self.weight = 0.0

    def add(self, event: Stepped) -> None:
        # About the mean of the last ten steps; without the division the first would count most.
        self.total = 0.9 * self.total + event.loss
        self.weight = 0.9 * self.weight + 1
        if self.first is None:
            self.first = (event.step, time.monotonic())
        self.tokens += event.tokens
        self.seconds += event.seconds

    def text(self, event: Stepped) -> str:
        rate = self.tokens / max(self.seconds, 1e-9)
        left = ""
        if self.first is not None and event.step > self.first[0]:
            a_step = (time.monotonic() - self.first[1]) / (event.step - self.first[0])
            left = f"  {duration((self.steps - event.step) * a_step)} left"
        return (
            f"loss {self.total / self.weight:.3f}  lr {event.learning_rate:.1e}  {rate:,.0f} tokens/s{left}"
        )


def _evaluation(event: Evaluated) -> str:
    return f"eval loss {event.loss:.4f}{' (best so far)' if event.best else ''}"


@contextmanager
def _view(run: Run, screen: Screen) -> Iterator[_Lines | _Bar | _Silent]:
    view: _Lines | _Bar | _Silent = _Silent()
    if screen.mode == "rich":
        view = _Bar(screen, run.plan.steps)
    elif screen.mode == "plain":
        view = _Lines(screen, run.plan.steps)
    try:
        yield view
    finally:
        view.close()
