"""What a sweep leaves in its folder: the table, the best run's adapter and settings, a picture."""

import importlib.util
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from loralab.errors import CheckpointError
from loralab.files import new_folder, write_json, write_text
from loralab.training.folder import RunFolder
from loralab.training.run import Run
from loralab.training.sweep.opening import TABLE, Opened
from loralab.training.sweep.space import Space, shown

__all__ = ["PICTURE", "Results", "Row", "cells_of", "columns_of", "losses_of"]

PICTURE = "sweep.svg"
_STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class Row:
    """What came of one trial."""

    trial: str
    values: dict[str, Any]
    state: str
    """finished, pruned, failed, or running: to be gone on with."""
    loss: float | None
    """The validation loss that its adapter has; of one that has none, the best so far."""
    step: int
    steps: int
    note: str = ""
    """Why it failed."""


def rows_of(folder: Path, space: Space, trials: Sequence[FrozenTrial]) -> list[Row]:
    """Return the trials as rows: those that finished before those that did not, the lowest loss first."""
    order = ("finished", "pruned", "running", "failed")
    rows = [_row(folder, space, trial) for trial in trials]
    return sorted(rows, key=lambda row: (order.index(row.state), row.loss is None, row.loss or 0.0))


def _row(folder: Path, space: Space, trial: FrozenTrial) -> Row:
    name = f"trial-{trial.number:03d}"
    run = RunFolder(folder / name)
    state, losses = run.state(), losses_of(run)
    return Row(
        name,
        space.tidy(trial.params),
        _STATES.get(trial.state, "running"),
        trial.value if trial.state == TrialState.COMPLETE else min(losses.values(), default=None),
        state.step,
        state.steps,
        str(trial.user_attrs.get("note", "")),
    )


def losses_of(run: RunFolder) -> dict[int, float]:
    """Return a run's validation losses by step."""
    return {row["step"]: row["loss"] for row in run.events() if row.get("event") == "evaluated"}


class Results:
    """The rows of a sweep and the files made of them."""

    def __init__(self, opened: Opened) -> None:
        self.rows: list[Row] = []
        """What came of the trials so far, the best first."""
        self._opened = opened
        self._fingerprint = opened.eval_fingerprint
        self._kept = ""

    @property
    def best(self) -> Row | None:
        """The finished trial of the lowest loss, if any is finished."""
        return next((row for row in self.rows if row.state == "finished"), None)

    def check_judged_alike(self, run: Run) -> None:
        """Hold a trial's validation data to that of the first trial.

        Raises:
            CheckpointError: it is another.
        """
        found = run.eval_data.fingerprint if run.eval_data else None
        self._fingerprint = self._fingerprint or found
        if found != self._fingerprint:
            raise CheckpointError(
                f"the validation data of {run.folder.name} is not that of the trials before, so their losses "
                "cannot be compared. Put it back as it was, or begin anew with --overwrite."
            )

    def write(self, trials: Sequence[FrozenTrial]) -> None:
        """Write the table, keep what is best and delete what is not."""
        folder, space = self._opened.folder, self._opened.space
        self.rows = rows_of(folder, space, trials)
        if self.best and self.best.trial != self._kept:
            keep_best(folder, self.best, space.first().runs)
            self._kept = self.best.trial
        self._write_table()
        if not self._opened.how.keep_all:
            drop_losers(folder, self.rows)

    def draw(self) -> bool:
        """Draw ``sweep.svg``, the loss against each setting; return False where matplotlib is missing."""
        if importlib.util.find_spec("matplotlib") is None:
            return False
        from loralab.pictures import save
        from loralab.training.sweep.picture import sweep_figure

        folder, space = self._opened.folder, self._opened.space
        save(sweep_figure(space, self.rows, folder.name), folder / PICTURE)
        self._write_table()
        return True

    def _write_table(self) -> None:
        """Write ``sweep.json`` and, of the same, ``sweep.md``."""
        folder, best = self._opened.folder, self.best
        found = self._opened.facts(self._fingerprint)
        rows = [asdict(row) for row in self.rows]
        write_json(folder / TABLE, {**found, "best": best.trial if best else None, "rows": rows})
        dimensions = self._opened.space.dimensions
        lines = [f"# Sweep {folder.name}", ""]
        lines += [f"- `{dimension.name}`: {dimension.text}" for dimension in dimensions]
        columns = columns_of(dimension.name for dimension in dimensions)
        cells = [columns, ["---"] * len(columns), *cells_of(self.rows)]
        lines += ["", *(f"| {' | '.join(line)} |" for line in cells)]
        if best:
            lines += [
                "",
                f"The best is {best.trial}: its adapter is in `adapter`, its settings in `best.toml`.",
            ]
        if (folder / PICTURE).exists():
            lines += ["", f"![Loss against each setting]({PICTURE})"]
        write_text(folder / "sweep.md", "\n".join(lines) + "\n")


def columns_of(swept: Iterable[str]) -> list[str]:
    """Return the names of what `cells_of` returns."""
    return ["trial", *swept, "loss", "step", "state"]


def cells_of(rows: Sequence[Row]) -> list[list[str]]:
    """Return rows as text: the trial, the value of each swept setting, loss, steps, state."""
    return [
        [
            row.trial,
            *(shown(value) for value in row.values.values()),
            "" if row.loss is None else f"{row.loss:.4f}",
            f"{row.step}/{row.steps}",
            f"{row.state}: {row.note}" if row.note else row.state,
        ]
        for row in rows
    ]


def keep_best(folder: Path, best: Row, runs: str) -> None:
    """Copy the best trial's ``adapter`` (a full fine-tune's ``model``), and write ``best.toml``.

    `runs` is the folder of runs that the settings are to name.
    """
    trial = RunFolder(folder / best.trial)
    for source in (trial.adapter, trial.model):
        if source.is_dir():
            with new_folder(folder / source.name) as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True)
    settings = trial.config().model_copy(update={"name": "", "runs": runs})
    write_text(folder / "best.toml", settings.to_toml())


def drop_losers(folder: Path, rows: Sequence[Row]) -> None:
    """Delete the checkpoints of trials that are over and not the best; of a full fine-tune its model too."""
    best = next((row for row in rows if row.state == "finished"), None)
    for row in rows:
        run = RunFolder(folder / row.trial)
        if row != best and row.state != "running":
            for path in (run.checkpoints, run.model):
                shutil.rmtree(path, ignore_errors=True)
