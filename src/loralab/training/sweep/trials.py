"""The trials of a sweep, trained one after the other or some at once, on one base that is loaded once."""

import dataclasses
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from loralab.adapters.store import find_adapter
from loralab.core.inits import changes_base
from loralab.errors import CheckpointError, LoralabError, TrainingError
from loralab.training.checkpoint import latest
from loralab.training.config import RunConfig
from loralab.training.control import Control
from loralab.training.events import Evaluated, Event, Failed, Finished, Interrupted
from loralab.training.findings import refuse
from loralab.training.folder import RunFolder
from loralab.training.many import ManyRuns
from loralab.training.run import Run
from loralab.training.starting import make_folders
from loralab.training.sweep.asking import Asked, Asking
from loralab.training.sweep.lending import Lender
from loralab.training.sweep.opening import Opened
from loralab.training.sweep.results import Results, Row, losses_of
from loralab.training.unchanged import check_unchanged

__all__ = ["Begun", "Ended", "Happened", "Sweep", "SweepEvent"]


@dataclass(frozen=True)
class Begun:
    """A trial begins, or goes on."""

    trial: str
    number: int
    """How many trials have begun with it."""
    trials: int
    """How many there are to be."""
    values: dict[str, Any]
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"event": "begun", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Happened:
    """Something happened in a trial's run."""

    trial: str
    event: Event

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"trial": self.trial, **self.event.to_dict()}


@dataclass(frozen=True)
class Ended:
    """A trial is over."""

    row: Row

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"event": "ended", **dataclasses.asdict(self.row)}


SweepEvent = Begun | Happened | Ended


class Sweep:
    """A sweep that is ready to begin, or to go on."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.results = Results(opened)
        self._lender = Lender()
        self._going: dict[str, Asked] = {}
        """The trials that are being trained, by name."""

    def events(self) -> Generator[SweepEvent, None, None]:
        """Train the trials that are left, and yield what happens; each is a run in the sweep's folder.

        Closing the generator saves a checkpoint of the trials that are being trained; the same sweep, begun
        again, goes on there. A trial that fails is written down as failed, and the others go on.

        Raises:
            ConfigError: another process is at this sweep.
            TrainingError: all trials failed.
            CheckpointError: a file cannot be written, or the data is not what it was.
            DataError, ModelError, TargetError: the first trial of a new sweep cannot begin.
        """
        opened = self.opened
        if opened.is_new:
            self._try_first()
        opened.folder.mkdir(parents=True, exist_ok=True)
        with RunFolder(opened.folder).hold():
            if opened.is_new:
                _clear(opened)
                self.results.write([])
            self._asking = Asking(opened.folder, opened.space, opened.trials, opened.seed)
            self._going = {asked.name: asked for asked in self._asking.left_over()}
            try:
                with closing(self._train_all()) as events:
                    yield from events
            finally:
                self.results.write(self._asking.trials())
        failed = [row for row in self.results.rows if row.state == "failed"]
        if failed and len(failed) == len(self.results.rows):
            raise TrainingError(f"all trials failed; the first: {failed[0].note}")

    def _try_first(self) -> None:
        """Put the first combination on the base: what is wrong with all is then told before any begins."""
        place = RunFolder(self.opened.folder / "trial-000")
        runs = self._lender.assemble([(self._config({}, place), place)])
        refuse(runs[0].findings)
        self._lender.take_back(runs)

    def _train_all(self) -> Generator[SweepEvent, None, None]:
        for asked in list(self._going.values()):
            # A process that ended just then may have finished a run and not told.
            if self._folder(asked).state().state == "finished":
                yield self._finish(asked)
        together = self.opened.how.together
        while group := list(self._going.values())[:together] or list(self._asking.more(together)):
            self._going.update({asked.name: asked for asked in group})
            sharing = [asked for asked in group if self._can_share(asked)]
            for part in [sharing, *([asked] for asked in group if asked not in sharing)]:
                if part:
                    yield from self._train(part)

    def _train(self, group: Sequence[Asked]) -> Iterator[SweepEvent]:
        """Train trials at once, to the end of each."""
        try:
            runs = self._assemble(group)
        except CheckpointError:
            raise
        except LoralabError as error:
            if len(group) == 1:
                yield self._fail(group[0], str(error))
                return
            for asked in group:
                yield from self._train([asked])
            return
        begun = [trial.number for trial in self._asking.trials()]
        for asked, run in zip(group, runs, strict=True):
            number = begun.index(asked.number) + 1
            yield Begun(asked.name, number, self._asking.total, asked.values, run.plan.steps)
        try:
            with closing(_events(runs)) as events:
                for name, event in events:
                    yield Happened(name, event)
                    yield from self._take_in(self._going[name], event)
        except TrainingError as error:
            for asked in group:
                if asked.name in self._going:
                    yield self._fail(asked, str(error))
        self._lender.take_back(runs)

    def _assemble(self, group: Sequence[Asked]) -> list[Run]:
        """Return the trials' runs, new or from their checkpoints.

        Raises:
            CheckpointError: the data is not what it was.
        """
        wanted = [(self._config(asked.values, self._folder(asked)), self._folder(asked)) for asked in group]
        runs = self._lender.assemble(wanted)
        for run in runs:
            self.results.check_judged_alike(run)
            if (run.folder.path / "config.toml").is_file():
                run.checkpoint = latest(run.folder.checkpoints)
                check_unchanged(run)
            else:
                make_folders([run])
        return runs

    def _take_in(self, asked: Asked, event: Event) -> Iterator[SweepEvent]:
        """Ask a hopeless trial to stop, and tell the study of one that is over."""
        folder = self._folder(asked)
        if isinstance(event, Evaluated):
            steps = folder.plan()["steps"]
            if asked.hopeless(event.step / steps, event.loss):
                Control(folder.path).ask(stop=True)
        elif isinstance(event, Finished):
            yield self._finish(asked)
        elif isinstance(event, Interrupted):
            # Asked for just above, or by `loralab stop`.
            self._asking.prune(asked)
            yield self._over(asked)
        elif isinstance(event, Failed):
            yield self._fail(asked, event.note)

    def _finish(self, asked: Asked) -> Ended:
        folder = self._folder(asked)
        losses = losses_of(folder)
        loss = min(losses.values()) if folder.config().keep_best else losses[max(losses)]
        self._asking.finish(asked, loss)
        return self._over(asked)

    def _fail(self, asked: Asked, note: str) -> Ended:
        self._asking.fail(asked, note)
        return self._over(asked)

    def _over(self, asked: Asked) -> Ended:
        del self._going[asked.name]
        self.results.write(self._asking.trials())
        return Ended(next(row for row in self.results.rows if row.trial == asked.name))

    def _folder(self, asked: Asked) -> RunFolder:
        return RunFolder(self.opened.folder / asked.name)

    def _config(self, values: dict[str, Any], folder: RunFolder) -> RunConfig:
        """Return a trial's settings; no values stand for the first combination."""
        space = self.opened.space
        config = space.config(values) if values else space.first()
        place = {"name": folder.name, "runs": str(folder.path.parent)}
        if config.from_adapter is not None:
            # A run's name would be looked for among the trials.
            place["from_adapter"] = str(find_adapter(config.from_adapter, config.runs))
        return config.model_copy(update=place)

    def _can_share(self, asked: Asked) -> bool:
        """Return whether a trial leaves the base as it is, so that others can train on it at once."""
        settings = {**self.opened.space.settings, **asked.values}
        init = settings.get("init", "kaiming")
        return not (settings.get("modules_to_save") or changes_base(init))


def _events(runs: Sequence[Run]) -> Generator[tuple[str, Event], None, None]:
    """Train one run as it would be alone, or several at once."""
    if len(runs) > 1:
        yield from ManyRuns(runs).events()
        return
    with closing(runs[0].events()) as events:
        for event in events:
            yield runs[0].folder.name, event


def _clear(opened: Opened) -> None:
    """Delete what an earlier sweep of the name left."""
    for path in opened.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()
