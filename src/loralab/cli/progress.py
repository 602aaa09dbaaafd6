"""Training runs on the screen: a bar on a terminal, lines in a pipe, events as JSON."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from types import FrameType
from typing import NoReturn

from loralab.cli.output import Screen
from loralab.cli.views import Length, view
from loralab.training.events import Failed, Finished
from loralab.training.many import ManyRuns
from loralab.training.probe import Probe
from loralab.training.run import Run

__all__ = ["accompany", "follow", "follow_together", "runs_flag", "stoppable"]


class _Stop:
    """Set by the first Ctrl-C; the second one stops at once, but for one of several processes."""

    def __init__(self, several: bool) -> None:
        self.asked = False
        self._several = several

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._several:
            # The terminal and torchrun both pass a Ctrl-C on; torchrun kills what takes more than 30 s.
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for other in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(other) is self:
                signal.signal(other, signal.SIG_DFL)


def follow(run: Run, screen: Screen, found: Probe | None = None) -> Finished:
    """Train `run`, show its course, and return its last event. What a probe has found tells the time left.

    The first Ctrl-C (or SIGTERM) finishes the step, saves and exits with code 130; the second stops at once.
    """
    name = run.folder.name
    several = run.processes.count > 1
    length = {name: _length(run, found)}
    with stoppable(several) as stop, view(length, screen) as shown, closing(run.events()) as events:
        for event in events:
            screen.data(event.to_dict())
            shown.show(name, event)
            if isinstance(event, Finished):
                return event
            if stop.asked:
                break
    _stopped([run], screen)


def accompany(run: Run) -> None:
    """Train `run` in a process that is not its first: that one hears Ctrl-C, and tells when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for _ in run.events():
        pass


def follow_together(many: ManyRuns, screen: Screen, results: dict[str, Finished]) -> None:
    """Train runs, show their course, and put the last event of each that is finished into `results`.

    Ctrl-C does for all what it does for one. Raises as `ManyRuns.events`.
    """
    going = {run.folder.name: run for run in many.runs}
    lengths = {run.folder.name: _length(run) for run in many.runs}
    with stoppable() as stop, view(lengths, screen) as shown, closing(many.events()) as events:
        for name, event in events:
            screen.data({"run": name, **event.to_dict()})
            shown.show(name, event)
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


def _length(run: Run, found: Probe | None = None) -> Length:
    plan = run.plan
    return Length(
        plan.steps,
        plan.eval_steps if run.eval_data else None,
        plan.sample_steps if run.sampler else None,
        found.evaluation_seconds if found else 0.0,
        found.sampling_seconds if found else 0.0,
    )


def _stopped(runs: Sequence[Run], screen: Screen) -> NoReturn:
    for run in runs:
        screen.say(f"stopped and saved. Go on with: loralab resume {run.folder.name}{runs_flag(run)}")
    sys.exit(130)


def runs_flag(run: Run) -> str:
    """Return the flag that finds `run` again: nothing while its runs lie in the usual folder."""
    return "" if run.config.runs == "runs" else f" --runs {run.config.runs}"


@contextmanager
def stoppable(several: bool = False) -> Iterator[_Stop]:
    """Yield what says whether Ctrl-C (or SIGTERM) was pressed; the second one stops at once.

    In a run of `several` processes it does not. A terminal that is closed (SIGHUP) counts as Ctrl-C, unless
    that is ignored, as `nohup` has it.
    """
    stop = _Stop(several)
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = [(number, signal.signal(number, stop)) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in before:
            signal.signal(number, handler)
