"""``metrics.csv`` in the run's folder: one row a step, for spreadsheets and scripts."""

import csv
import io
from pathlib import Path

from loralab.files import append_line, write_text
from loralab.training.config import RunConfig
from loralab.training.events import Evaluated, Event, Stepped
from loralab.training.folder import RunFolder
from loralab.training.history import read_history

NEEDS = ""
AGAIN = True

_COLUMNS = (
    *("step", "epoch", "loss", "smoothed_loss", "eval_loss"),
    *("learning_rate", "grad_norm", "tokens", "seconds"),
)


class Reporter:
    """Writes a step's row once the step is over: an evaluation that follows it belongs to it."""

    def __init__(self, folder: RunFolder, config: RunConfig) -> None:
        self._path: Path = folder.path / "metrics.csv"
        self._row: dict[str, float] = {}
        history = read_history(folder.events())
        losses = {event.step: event.loss for event in history.evaluations}
        lines = [_line(list(_COLUMNS))]
        for event in history.steps:
            evaluated = {"eval_loss": losses[event.step]} if event.step in losses else {}
            lines.append(_line_of(_row_of(event) | evaluated))
        write_text(self._path, "".join(line + "\n" for line in lines))

    def add(self, event: Event) -> None:
        """Take in a step or an evaluation."""
        if isinstance(event, Stepped):
            self.close()
            self._row = _row_of(event)
        elif isinstance(event, Evaluated):
            self._row["eval_loss"] = event.loss

    def close(self) -> None:
        """Write the last row."""
        if "step" in self._row:
            append_line(self._path, _line_of(self._row))
        self._row = {}


def _row_of(event: Stepped) -> dict[str, float]:
    return {
        "step": event.step,
        "epoch": event.epoch,
        "loss": event.loss,
        "smoothed_loss": event.smoothed,
        "learning_rate": event.learning_rate,
        "grad_norm": event.grad_norm,
        "tokens": event.tokens,
        "seconds": event.seconds,
    }


def _line_of(row: dict[str, float]) -> str:
    return _line([row.get(column, "") for column in _COLUMNS])


def _line(cells: list[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()
