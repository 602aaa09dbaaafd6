"""Which values come next, and what became of those before: optuna, and its journal in the sweep's folder."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from loralab.training.sweep.space import Choices, Dimension, Space

__all__ = ["JOURNAL", "Asked", "Asking"]

JOURNAL = "study.journal"
_BEFORE_PRUNING = (4, 30)
"""Trials that end before the first is pruned, and how many hundredths of a trial are never pruned."""
_MOST_COUNTED = 100_000


@dataclass(frozen=True)
class Asked:
    """A trial that is to be trained."""

    number: int
    values: dict[str, Any]
    trial: optuna.Trial

    @property
    def name(self) -> str:
        """The name of its run."""
        return f"trial-{self.number:03d}"

    def hopeless(self, share: float, loss: float) -> bool:
        """Take in the validation loss after a share of the steps; return whether the trial should end there.

        It should where its best loss is above the median of the others' at the same share.
        """
        hundredths = round(100 * share)
        if hundredths not in self.trial.study.trials[self.number].intermediate_values:
            self.trial.report(loss, hundredths)
        return share < 1 and self.trial.should_prune()


class Asking:
    """Asks for the values of trials, all of a grid or those that look best, and is told their losses."""

    def __init__(self, folder: Path, space: Space, trials: int | None, seed: int) -> None:
        """Open the study that lies in `folder`, or begin one."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # A killed process leaves its lock, and the next would wait for it; the folder is ours alone by now.
        Path(folder / f"{JOURNAL}.lock").unlink(missing_ok=True)
        startup, warmup = _BEFORE_PRUNING
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
            study_name="sweep",
            pruner=optuna.pruners.MedianPruner(startup, warmup),
            load_if_exists=True,
        )
        before = len(self.study.trials)
        # Going on with the same seed would draw the first values again.
        self.study.sampler = optuna.samplers.TPESampler(seed=seed + before)
        self._space, self._random = space, random.Random(seed + before)
        self._distributions = {d.name: _distribution(d) for d in space.dimensions}
        self.total = space.trials(trials)
        if self.total == space.grid:
            queue = self.study.get_trials(states=(TrialState.WAITING,))
            waiting = [trial.system_attrs["fixed_params"] for trial in queue]
            for values in self._untried():
                if values not in waiting:
                    self.study.enqueue_trial(values)

    def trials(self) -> list[FrozenTrial]:
        """Return the trials that have been asked for, in their order."""
        return [
            trial
            for trial in self.study.trials
            if trial.state != TrialState.WAITING and "again" not in trial.user_attrs
        ]

    def left_over(self) -> list[Asked]:
        """Return the trials that an earlier sitting did not bring to their end."""
        return [
            self._asked(optuna.Trial(self.study, trial._trial_id))
            for trial in self.trials()
            if trial.state == TrialState.RUNNING
        ]

    def more(self, most: int) -> Iterator[Asked]:
        """Yield new trials, as many as there are to be and at most so many."""
        for _ in range(min(most, self.total - len(self.trials()))):
            asked = self._ask()
            if asked is None:
                return
            yield asked

    def finish(self, asked: Asked, loss: float) -> None:
        """Take in the loss of a trial that came to its end."""
        self.study.tell(asked.number, loss)

    def prune(self, asked: Asked) -> None:
        """Take in that a trial was ended early."""
        self.study.tell(asked.number, state=TrialState.PRUNED)

    def fail(self, asked: Asked, note: str) -> None:
        """Take in that a trial failed, and why."""
        asked.trial.set_user_attr("note", note)
        self.study.tell(asked.number, state=TrialState.FAIL)

    def _ask(self) -> Asked | None:
        """Return a trial of values that no trial has had, or None where there are none."""
        asked = self._asked(self.study.ask(self._distributions))
        if self._is_new(asked):
            return asked
        # The run would come out as before, so there is nothing to learn from it.
        asked.trial.set_user_attr("again", True)
        self.study.tell(asked.number, state=TrialState.FAIL)
        untried = list(itertools.islice(self._untried(), _MOST_COUNTED))
        if not untried:
            return None
        self.study.enqueue_trial(self._random.choice(untried))
        return self._asked(self.study.ask(self._distributions))

    def _is_new(self, asked: Asked) -> bool:
        others = [trial for trial in self.trials() if trial.number != asked.number]
        return asked.values not in [self._space.tidy(trial.params) for trial in others]

    def _untried(self) -> Iterator[dict[str, Any]]:
        tried = [self._space.tidy(trial.params) for trial in self.trials()]
        return (values for values in self._space.combinations() if values not in tried)

    def _asked(self, trial: optuna.Trial) -> Asked:
        return Asked(trial.number, self._space.tidy(trial.params), trial)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.values)
    if dimension.integer:
        step = int(dimension.step or 1)
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
