"""Several runs at once over one base: their micro-batches go through the model as one batch.

Each run keeps its own adapter, data, optimizer, schedule and folder, and comes out as it would alone, to
rounding. Only dropout differs: its masks are drawn from one stream, so they are others than alone.
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from loralab.errors import ConfigError, LoralabError, TrainingError
from loralab.models.hardware import choose_device
from loralab.training.config import RunConfig
from loralab.training.devices import join
from loralab.training.events import Event, Failed, Interrupted, Paused
from loralab.training.folder import RunFolder
from loralab.training.loop import Course
from loralab.training.record import Recorder
from loralab.training.run import Run
from loralab.training.starting import assemble, make_folders, named

__all__ = ["ManyRuns", "start_together"]

_PAUSE = 0.2
_SHARED = (
    *("model", "dtype", "quantize", "activation_checkpointing", "max_memory", "allow_pickle"),
    *("label_smoothing", "neftune_alpha"),
)
"""Settings of the base, which is one, and of the pass through it that all share."""


@dataclass
class ManyRuns:
    """Runs on one base that are ready to go."""

    runs: Sequence[Run]

    def events(self) -> Generator[tuple[str, Event], None, None]:
        """Train all, and yield (the run's name, what happens).

        All that happens at a tick, one pass through the model for all runs, is in their folders before any
        of it is yielded. A run that fails says `Failed` and leaves the others to go on. Closing the generator
        saves a checkpoint of each run's last whole step and marks the runs as interrupted; each can be
        resumed alone.

        Raises:
            TrainingError: runs failed; raised when the others are finished.
            CheckpointError: while closing, a checkpoint cannot be written.
            ConfigError: another process is at one of the runs.
        """
        with ExitStack() as held:
            for run in self.runs:
                held.enter_context(run.hold())
            members = [_Member(run) for run in self.runs]
            try:
                yield from self._train(members)
            except GeneratorExit:
                _interrupt(members)
                raise
            except LoralabError as error:
                for member in members:
                    if member.going:
                        member.fail(error)
                raise
            finally:
                for member in members:
                    member.close()
        errors = [f"run {m.name!r}: {m.error}" for m in members if m.error]
        if errors:
            raise TrainingError(" ".join(errors))

    def _train(self, members: Sequence["_Member"]) -> Iterator[tuple[str, Event]]:
        yield from [(member.name, event) for member in members for event in member.begin()]
        shared = self.runs[0]
        shared.model.train()
        while going := [member for member in members if member.going]:
            active = [member for member in going if not member.waits()]
            if not active:
                yield from [(member.name, member.pause()) for member in going]
                continue
            _add_gradients(shared.model, active)
            happened = [(member.name, event) for member in active for event in member.step()]
            yield from happened


class _Member:
    """A run among others: where it is in its batch, and what is written of it."""

    course: Course

    def __init__(self, run: Run) -> None:
        self.run = run
        self.name = run.folder.name
        self.going = True
        self.error: LoralabError | None = None
        self._recorder = Recorder(run.folder, run.config, run.plan.steps)
        self._batch: list[Any] = []
        self._saves = 0
        self._taken = 0
        """How many examples of the batch have their gradient."""
        self._weight = self._loss = self._seconds = 0.0

    def begin(self) -> list[Event]:
        """Return the run's first events: that it begins, and how the base alone answers its prompts."""
        self.course = self.run.course()
        self._saves = self.course.wishes().saves
        events = []
        for event in self.run.begin(self.course):
            self._recorder.add(event)
            events.append(event)
        return events

    def waits(self) -> bool:
        """Return whether the run was told to pause."""
        wishes = self.course.wishes()
        return wishes.pause and not wishes.stop

    def pause(self) -> Event:
        """Wait a little, and say so."""
        paused = Paused(self.course.progress.step)
        self._recorder.add(paused)
        time.sleep(_PAUSE)
        return paused

    def micro_batch(self) -> list[Any]:
        """Return the examples that come next."""
        if not self._taken:
            self._batch = self.course.batch()
            self._weight = sum(self.run.task.weight(example) for example in self._batch)
            self._loss = self._seconds = 0.0
        examples = self._batch[self._taken : self._taken + self.run.config.micro]
        self._taken += len(examples)
        return examples

    def share(self, loss: torch.Tensor) -> torch.Tensor:
        """Return what a micro-batch's summed loss adds to the mean loss of the batch."""
        return loss / self._weight

    def add(self, share: float, seconds: float) -> None:
        """Count a micro-batch."""
        self._loss += share
        self._seconds += seconds

    def step(self) -> list[Event]:
        """Step if the batch is whole, and return what happened."""
        events: list[Event] = []
        if self._taken < len(self._batch):
            return events
        self._taken = 0
        began = time.perf_counter() - self._seconds
        try:
            for event in self.course.step(self._batch, self._loss, began):
                self._recorder.add(event)
                events.append(event)
            last = self._last()
            if last is not None:
                self._recorder.add(last)
                events.append(last)
                self.going = False
        except LoralabError as error:
            self.fail(error)
            events.append(Failed(self.course.progress.step, str(error)))
        return events

    def _last(self) -> Event | None:
        """Return the run's last event if this is its end, and save what was asked for."""
        course, wishes = self.course, self.course.wishes()
        if course.done:
            return self.run.finish(course.progress)
        if wishes.stop or wishes.saves > self._saves:
            self._saves = wishes.saves
            course.save()
        return Interrupted(course.progress.step) if wishes.stop else None

    def fail(self, error: LoralabError) -> None:
        """Leave the others, for an error."""
        self.going, self.error = False, error
        self._recorder.fail(error)

    def close(self) -> None:
        """Write out what reporters still hold."""
        self._recorder.close()

    def interrupt(self) -> None:
        """Save the last whole step and leave the others; an error is kept in `error`."""
        try:
            if self.course.progress.step:
                self.course.save()
        except LoralabError as error:
            self.fail(error)
        else:
            self.going = False
            self._recorder.interrupt()


def _interrupt(members: Sequence[_Member]) -> None:
    stopped = [member for member in members if member.going]
    for member in stopped:
        member.interrupt()
    for member in stopped:
        if member.error:
            raise member.error


def _add_gradients(model: Any, members: Sequence[_Member]) -> None:
    """Add the gradient of each run's next micro-batch to its parameters.

    The sum of the runs' losses gives each adapter the gradient of its own loss, as no other depends on it.
    """
    began = time.perf_counter()
    run = members[0].run
    joint = run.task.join([member.micro_batch() for member in members])
    # With activation checkpointing the layers are computed again in the backward pass, so it is in here too.
    with run.model.base_model.rows(*joint.rows([member.run.trainee.name for member in members])):
        losses = run.task.losses(model, joint)
        shares = torch.stack([member.share(loss) for member, loss in zip(members, losses, strict=True)])
        shares.sum().backward()
    found = shares.tolist()
    seconds = time.perf_counter() - began
    for member, share in zip(members, found, strict=True):
        member.add(share, seconds)


def start_together(
    configs: Sequence[RunConfig], *, overwrite: bool = False, sources: Sequence[str] = ()
) -> ManyRuns:
    """Load and check everything for new runs that train at once over one base, and make their folders.

    They may differ in all but the base: data, rank, targets, learning rate, length and so on. Nothing is
    written before all checks have passed. `sources` says where each config is from, for messages.

    Raises:
        ConfigError: the configs are of different bases or share a name, or as `start`.
        DataError, ModelError, TargetError: as the parts raise them.
    """
    if not configs:
        raise ConfigError("no runs were given.")
    if join(choose_device()).count > 1:
        raise ConfigError("runs that train together do so in one process; start several for one run only.")
    where = list(sources) or [config.name or f"run {number}" for number, config in enumerate(configs, 1)]
    wanted: list[tuple[RunConfig, RunFolder]] = []
    for config, source in zip(configs, where, strict=True):
        try:
            wanted.append(named(config, overwrite=overwrite, taken=[c.name for c, _ in wanted]))
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
    _check_together([config for config, _ in wanted], where)
    runs = assemble(wanted)
    make_folders(runs, overwrite=overwrite)
    return ManyRuns(runs)


def _check_together(configs: Sequence[RunConfig], where: Sequence[str]) -> None:
    for config, source in zip(configs, where, strict=True):
        if config.compile and len(configs) > 1:
            raise ConfigError(
                f"{source}: compile is for a run alone, as every batch of several would be compiled anew; "
                "leave it out."
            )
    for config, source in zip(configs[1:], where[1:], strict=True):
        for setting in _SHARED:
            first, other = getattr(configs[0], setting), getattr(config, setting)
            if first != other:
                raise ConfigError(
                    f"{where[0]} has {setting} {first!r}, {source} has {other!r}; runs that are trained "
                    "together share one base, so make them the same, or train one after the other."
                )
    for name, count in Counter(config.name for config in configs).items():
        if count > 1:
            both = [source for config, source in zip(configs, where, strict=True) if config.name == name]
            raise ConfigError(f"{' and '.join(both)}: both runs are named {name!r}; give each its own name.")
