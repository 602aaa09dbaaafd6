"""An evaluation on the screen: the way there, and the rows that came of it."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from rich.markup import escape
from rich.progress import TaskID

from loralab.cli.evaluations import show_rows
from loralab.cli.output import Screen, duration
from loralab.cli.training import describe
from loralab.cli.views import bars
from loralab.training.evaluation.material import Material
from loralab.training.evaluation.measure import Measured, Measuring, Progress, Read
from loralab.training.evaluation.table import Table

__all__ = ["follow"]

_RESULT = ("adapter", "data", "template", "loss", "perplexity", "tokens")
_SILENCE = 10.0
"""Seconds between two lines about the way, where lines do not move."""


def follow(events: Iterable[Measuring], data: str, table: Table, screen: Screen) -> None:
    """Show the way of a measuring, then its rows as one table."""
    found: list[Measured] = []
    with _view(screen) as view:
        for event in events:
            if isinstance(event, Read):
                screen.fact("data", describe(event.material.data, data))
                for line in _parts(event.material):
                    screen.fact("measured", line)
            elif isinstance(event, Progress):
                view.show(event)
            else:
                found.append(event)
                if event.known:
                    screen.fact("known", _known(event.row))
    rows = [event.row for event in found]
    for row in rows:
        if row.get("answers"):
            screen.fact("answers", str(table.path.parent / row["answers"]))
    screen.data({"rows": [event.row | {"known": event.known} for event in found], "table": str(table.path)})
    new = sum(not event.known for event in found)
    screen.fact("table", f"{table.path}, {new} rows added" if new != 1 else f"{table.path}, 1 row added")
    show_rows(rows, [name for name in _RESULT if name not in _same(rows)], screen)


def _same(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return which of the columns that tell rows apart do not."""
    return [name for name in ("data", "template") if len({row.get(name, "") for row in rows}) < 2]


def _known(row: Mapping[str, Any]) -> str:
    return f"{row['adapter']} is in the table since {row.get('date', '')}; --again measures it once more"


def _parts(material: Material) -> Iterator[str]:
    """Yield what is measured, where that is not simply all rows."""
    if material.max_length is not None:
        yield (
            f"{len(material.examples):,} windows of up to {material.max_length} tokens, "
            f"stride {material.stride}; {material.tokens:,} tokens scored"
        )
    elif material.rows < len(material.data.examples):
        yield f"the first {material.rows:,} rows, {material.tokens:,} tokens of them"


class _Pace:
    """Rate and time left of what is counted, since it was first seen."""

    def __init__(self, first: Progress) -> None:
        self.began, self.start = time.monotonic(), first.done

    def text(self, event: Progress) -> str:
        done, seconds = event.done - self.start, time.monotonic() - self.began
        if not done or seconds <= 0:
            return ""
        left = (event.total - event.done) * seconds / done
        return f"{done / seconds:,.1f} {event.unit}/s  {duration(left)} left"


class _View:
    """One line or bar for each thing that is counted of each subject."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.now: tuple[str, str] | None = None
        self.pace: _Pace | None = None

    def show(self, event: Progress) -> None:
        if self.now != (event.subject, event.unit) or self.pace is None or not event.done:
            self.now, self.pace = (event.subject, event.unit), _Pace(event)
            self.begin(event)
        self.step(event, self.pace.text(event))

    def begin(self, event: Progress) -> None:
        self.last = time.monotonic()

    def step(self, event: Progress, pace: str) -> None:
        if self.screen.mode == "plain" and time.monotonic() - self.last > _SILENCE:
            self.last = time.monotonic()
            self.screen.say(f"{event.subject}: {event.done:,}/{event.total:,} {event.unit}  {pace}")

    def close(self) -> None:
        pass


class _BarView(_View):
    def __init__(self, screen: Screen) -> None:
        super().__init__(screen)
        self.bars = bars(screen, transient=True)
        self.bar: TaskID | None = None
        self.bars.start()

    def begin(self, event: Progress) -> None:
        if self.bar is not None:
            self.bars.remove_task(self.bar)
        self.bar = self.bars.add_task(escape(f"{event.subject}, {event.unit}"), total=event.total, now="")

    def step(self, event: Progress, pace: str) -> None:
        if self.bar is not None:
            self.bars.update(self.bar, completed=event.done, now=pace)

    def close(self) -> None:
        self.bars.stop()


def _view(screen: Screen) -> closing[_View]:
    return closing(_BarView(screen) if screen.live else _View(screen))
