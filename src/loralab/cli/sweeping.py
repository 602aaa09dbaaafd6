"""What `sweep` prints: the trials as they go, and the table of what came of them."""

import sys
import time
from contextlib import closing
from dataclasses import asdict

from rich.markup import escape
from rich.progress import TaskID

from loralab.cli.output import Screen, duration
from loralab.cli.progress import stoppable
from loralab.cli.views import bars
from loralab.training.events import Evaluated, Stepped
from loralab.training.sweep.results import Row, cells_of, columns_of
from loralab.training.sweep.space import shown
from loralab.training.sweep.trials import Begun, Ended, Happened, Sweep, SweepEvent

__all__ = ["carry_out"]


def carry_out(sweep: Sweep, screen: Screen) -> None:
    """Show what is swept, train the trials, show what came of them.

    The first Ctrl-C (or SIGTERM) finishes the step, saves and exits with code 130; the second stops at once.
    """
    _show_plan(sweep, screen)
    with stoppable() as stop, _view(screen) as view, closing(sweep.events()) as events:
        for event in events:
            screen.data(event.to_dict())
            view.show(event)
            if stop.asked:
                break
    _show_results(sweep, screen)
    left = sweep.opened.trials - sum(row.state != "running" for row in sweep.results.rows)
    if stop.asked and left > 0:
        screen.say(f"stopped and saved, {left} trials are left. Go on with the same command.")
        sys.exit(130)


def _show_plan(sweep: Sweep, screen: Screen) -> None:
    opened = sweep.opened
    screen.fact("sweep", f"{opened.folder}{'' if opened.is_new else ', going on'}")
    for dimension in opened.space.dimensions:
        screen.fact(dimension.name, dimension.text)
    every = "every combination" if opened.trials == opened.space.count else "chosen by those before"
    at_once = f", {opened.how.together} at once" if opened.how.together > 1 else ""
    screen.fact("trials", f"{opened.trials}, {every}{at_once}")


def _show_results(sweep: Sweep, screen: Screen) -> None:
    rows, best, folder = sweep.results.rows, sweep.results.best, sweep.opened.folder
    drawn = bool(best) and sweep.results.draw()
    names = [dimension.name for dimension in sweep.opened.space.dimensions]
    screen.say()
    screen.table(columns_of(names), cells_of(rows))
    screen.data(
        {
            "event": "swept",
            "folder": str(folder),
            "best": best.trial if best else None,
            "rows": [asdict(row) for row in rows],
        }
    )
    if best is None:
        return
    screen.say()
    screen.fact("best", f"{best.trial}, {_said(best)}: loss {best.loss:.4f}")
    kind = "model" if sweep.opened.space.first().full else "adapter"
    screen.fact(kind, str(folder / kind))
    screen.fact("settings", str(folder / "best.toml"))
    screen.fact("table", f"{folder / 'sweep.md'}, {folder / 'sweep.json'}")
    picture = str(folder / "sweep.svg") if drawn else "not drawn; pip install 'loralab[plot]'"
    screen.fact("picture", picture)


def _said(row: Row | Begun) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in row.values.items())


class _View:
    """Where the sweep is: the trials that are over, those that are trained now, the time left."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.shares: dict[str, float] = {}
        """How much of each trial of this sitting is done."""
        self.steps: dict[str, int] = {}
        self.trials = self.first = 0
        self.began = time.monotonic()
        self.best: Row | None = None

    def show(self, event: SweepEvent) -> None:
        """Take in what happened."""
        if isinstance(event, Begun):
            self.first = self.first or event.number
            self.trials, self.steps[event.trial] = event.trials, event.steps
            self.shares[event.trial] = 0.0
            self.line(f"{event.trial} ({event.number} of {event.trials}): {_said(event)}")
        elif isinstance(event, Ended):
            self.shares[event.row.trial] = 1.0
            self.line(f"{event.row.trial} {self._outcome(event.row)}{self.left()}")
        elif isinstance(event.event, Stepped):
            self.shares[event.trial] = event.event.step / self.steps[event.trial]

    def _outcome(self, row: Row) -> str:
        if row.state == "failed":
            return f"failed: {row.note}"
        loss = "" if row.loss is None else f", eval loss {row.loss:.4f}"
        if row.state == "pruned":
            return f"pruned at step {row.step} of {row.steps}{loss}"
        if row.loss is not None and (self.best is None or row.loss < (self.best.loss or 0)):
            self.best = row
            return f"finished{loss} (best so far)"
        return f"finished{loss}"

    def left(self) -> str:
        """Return the time that the trials which are left will take, by those of this sitting."""
        done = sum(self.shares.values())
        left = self.trials - (self.first - 1) - done
        if not done or left <= 0:
            return ""
        return f"  {duration((time.monotonic() - self.began) / done * left)} left"

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self.screen.say(text)

    def close(self) -> None:
        """Leave the screen as it is."""


class _BarView(_View):
    """The same on a terminal, with a bar for the sweep and one for each trial that is trained."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen)
        self.bars = bars(screen)
        self.whole = self.bars.add_task("trials", total=None, now="")
        self.of: dict[str, TaskID] = {}
        self.bars.start()

    def show(self, event: SweepEvent) -> None:
        super().show(event)
        if isinstance(event, Begun):
            self.of[event.trial] = self.bars.add_task(escape(event.trial), total=event.steps, now="")
        elif isinstance(event, Ended) and event.row.trial in self.of:
            self.bars.remove_task(self.of.pop(event.row.trial))
        elif isinstance(event, Happened) and isinstance(event.event, Stepped):
            step = event.event
            self.bars.update(self.of[event.trial], completed=step.step, now=f"loss {step.smoothed:.3f}")
        elif isinstance(event, Happened) and isinstance(event.event, Evaluated):
            self.bars.update(self.of[event.trial], now=f"eval loss {event.event.loss:.4f}")
        over = self.first - 1 + sum(share == 1.0 for share in self.shares.values())
        self.bars.update(self.whole, total=self.trials or None, completed=max(over, 0), now=self.left())

    def line(self, text: str) -> None:
        self.bars.console.print(text, style="dim", markup=False)

    def close(self) -> None:
        self.bars.stop()


def _view(screen: Screen) -> closing[_View]:
    return closing(_BarView(screen) if screen.live else _View(screen))
