"""Training runs on the screen: a bar on a terminal, lines in a pipe, events as JSON."""

import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from types import FrameType
from typing import NoReturn

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from loralab.cli.output import Screen, duration
from loralab.training.events import Evaluated, Event, Failed, Finished, Saved, Started, Stepped
from loralab.training.many import ManyRuns
from loralab.training.run import Run

__all__ = ["follow", "follow_together", "runs_flag"]


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
    name = run.folder.name
    with _stoppable() as stop, _view([run], screen) as view, closing(run.events()) as events:
        for event in events:
            screen.data(event.to_dict())
            view.show(name, event)
            if isinstance(event, Finished):
                return event
            if stop.asked:
                break
    _stopped([run], screen)


def follow_together(many: ManyRuns, screen: Screen, results: dict[str, Finished]) -> None:
    """Train runs, show their course, and put the last event of each that is finished into `results`.

    Ctrl-C does for all what it does for one. Raises as `ManyRuns.events`.
    """
    going = {run.folder.name: run for run in many.runs}
    with _stoppable() as stop, _view(many.runs, screen) as view, closing(many.events()) as events:
        for name, event in events:
            screen.data({"run": name, **event.to_dict()})
            view.show(name, event)
            if isinstance(event, Finished):
                results[name] = event
            if isinstance(event, Finished | Failed):
                del going[name]
            if stop.asked:
                break
    # A run may have come to its end in the same pass, after what was shown last.
    left = [run for run in going.values() if run.folder.state().state != "finished"]
    if stop.asked and left:
        _stopped(left, screen)


def _stopped(runs: Sequence[Run], screen: Screen) -> NoReturn:
    for run in runs:
        screen.say(f"stopped and saved. Go on with: loralab resume {run.folder.name}{runs_flag(run)}")
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
    """Plain lines: about twenty for the steps, and one for every evaluation; of several runs, with names."""

    def __init__(self, screen: Screen, steps: Mapping[str, int]) -> None:
        self.screen = screen
        self.steps = steps
        self.paces = {name: _Pace(count) for name, count in steps.items()}

    def show(self, name: str, event: Event) -> None:
        steps, pace = self.steps[name], self.paces[name]
        if isinstance(event, Started) and event.step:
            self._say(name, f"going on from step {event.step}")
        elif isinstance(event, Stepped):
            pace.add(event)
            if event.step % max(1, steps // 20) == 0 or event.step == steps:
                self._say(name, f"step {event.step}/{steps}  {pace.text(event)}")
        elif isinstance(event, Evaluated):
            self._say(name, f"step {event.step}/{steps}  {_evaluation(event)}")
        elif isinstance(event, Failed):
            self._say(name, f"failed: {event.note}")

    def _say(self, name: str, text: str) -> None:
        self.screen.say(f"{name}: {text}" if len(self.steps) > 1 else text)

    def close(self) -> None:
        pass


class _Bars:
    """For each run a progress bar with the loss, the rate and the time left."""

    def __init__(self, screen: Screen, steps: Mapping[str, int]) -> None:
        self.paces = {name: _Pace(count) for name, count in steps.items()}
        self.evaluations = dict.fromkeys(steps, "")
        self.progress = Progress(
            TextColumn("[bold cyan]{task.description}", markup=True),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
            console=screen.console,
        )
        self.many = len(steps) > 1
        self.bars: dict[str, TaskID] = {
            name: self.progress.add_task(escape(name) if self.many else "training", total=count, now="")
            for name, count in steps.items()
        }
        self.progress.start()

    def show(self, name: str, event: Event) -> None:
        bar = self.bars[name]
        if isinstance(event, Started):
            self.progress.update(bar, completed=event.step)
        elif isinstance(event, Stepped):
            pace = self.paces[name]
            pace.add(event)
            now = pace.text(event) + self.evaluations[name]
            self.progress.update(bar, completed=event.step, now=now)
        elif isinstance(event, Evaluated):
            self.evaluations[name] = f"  eval {event.loss:.3f}"
            self._print(name, f"step {event.step:>5}  {_evaluation(event)}")
        elif isinstance(event, Failed):
            self.progress.update(bar, now="failed")
            self._print(name, f"failed: {event.note}")
        elif isinstance(event, Saved | Finished):
            self.progress.refresh()

    def _print(self, name: str, text: str) -> None:
        line = f"{name}: {text}" if self.many else text
        self.progress.console.print(line, style="dim", markup=False)

    def close(self) -> None:
        self.progress.stop()


class _Silent:
    def show(self, name: str, event: Event) -> None:
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
def _view(runs: Sequence[Run], screen: Screen) -> Iterator[_Lines | _Bars | _Silent]:
    view: _Lines | _Bars | _Silent = _Silent()
    steps = {run.folder.name: run.plan.steps for run in runs}
    if screen.mode == "rich":
        view = _Bars(screen, steps)
    elif screen.mode == "plain":
        view = _Lines(screen, steps)
    try:
        yield view
    finally:
        view.close()
