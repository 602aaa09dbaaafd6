"""A run that is ready to go, from its first event to its adapter."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from loralab.adapters.habits import Habits, write_habits
from loralab.core.adapter import Adapter
from loralab.data.dataset import Dataset
from loralab.data.examples import Examples
from loralab.data.findings import Finding
from loralab.data.types import Example
from loralab.errors import ConfigError, LoralabError
from loralab.files import new_folder, write_text
from loralab.models import BaseModel
from loralab.training.card import card
from loralab.training.checkpoint import Progress, load_checkpoint, prune, save_checkpoint
from loralab.training.config import RunConfig
from loralab.training.control import Control, Wishes
from loralab.training.devices import ALONE, Processes, SharedWishes
from loralab.training.events import Event, Finished, Interrupted, Started
from loralab.training.findings import check_run
from loralab.training.folder import RunFolder
from loralab.training.forecast import Forecast
from loralab.training.habits import habits_of
from loralab.training.loop import Course, Plan, evaluate, plan, train
from loralab.training.optimizers import make_optimizer
from loralab.training.probe import Material, Probe, probe
from loralab.training.record import Recorder, peak_memory
from loralab.training.report.measuring import General, Measuring, read_effect
from loralab.training.samples import Sampler
from loralab.training.tasks.causal_lm import CausalLM
from loralab.training.trainee import AdapterTrainee, Trainee

__all__ = ["Run"]


@dataclass
class Run:
    """A run that is ready to go: everything is loaded and checked, nothing is trained yet."""

    folder: RunFolder
    config: RunConfig
    base: BaseModel
    trainee: Trainee
    task: CausalLM
    data: Dataset
    eval_data: Dataset | None
    memory: Forecast
    checkpoint: Path | None = None
    """Where to go on from, if anywhere."""
    sampler: Sampler | None = None
    """Answers the run's prompts, if it has some."""
    general: General | None = None
    """General text, on which is measured what was forgotten."""
    processes: Processes = ALONE
    """Those that train it together, each with a `Run` like this one; the first alone writes."""

    made: os.stat_result | None = None
    """The folder as it was made, of a new run."""

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the run's folder for this process while the block lasts.

        Raises:
            ConfigError: another process holds it, or has put another run in its place.
        """
        with self.folder.hold():
            if self.made and not os.path.samestat(self.made, self.folder.path.stat()):
                raise ConfigError(
                    f"run {self.folder.name!r} was replaced by another process before it began; "
                    "choose another --name."
                )
            yield

    @property
    def plan(self) -> Plan:
        """When the run will do what."""
        return plan(self.config, len(self.data.examples))

    @property
    def examples(self) -> tuple[Examples, Sequence[Example]]:
        """The examples to train on, and those to validate on, if there are any."""
        return self.data.examples, self.eval_data.examples if self.eval_data else ()

    @cached_property
    def findings(self) -> list[Finding]:
        """What the checks find in its data and settings, the worst first."""
        return check_run(self)

    @property
    def habits(self) -> Habits:
        """How the adapter is trained to be spoken to."""
        return habits_of(self.data, self.base.tokenizer)

    @property
    def model(self) -> Any:
        """The model that is trained: the base with its adapters, or of a full fine-tune the base itself."""
        return self.trainee.model

    @property
    def adapter(self) -> Adapter | None:
        """The adapter as it is now, its tensors the model's own; a full fine-tune has none."""
        return self.trainee.adapter if isinstance(self.trainee, AdapterTrainee) else None

    @property
    def parameters(self) -> tuple[int, int]:
        """The numbers of trainable parameters, and of those of the base and the adapter together."""
        return self.trainee.parameters()

    def events(self) -> Generator[Event, None, None]:
        """Train, and yield what happens; every event is in the run's folder before it is yielded.

        Closing the generator saves a checkpoint of the last whole step and marks the run as interrupted. Of
        several processes each goes through its own generator to the end, and only the first may close it.

        Raises:
            TrainingError: the loss is not finite, or the adapter came out without any effect.
            CheckpointError: a checkpoint cannot be written or read.
            ConfigError: another process is at this run.
        """
        if not self.processes.first:
            yield from self._train()
            return
        with self.hold():
            recorder = Recorder(self.folder, self.config, self.plan.steps)
            try:
                with closing(self._train()) as events:
                    for event in events:
                        recorder.add(event)
                        yield event
            except GeneratorExit:
                recorder.interrupt()
                raise
            except LoralabError as error:
                recorder.fail(error)
                raise
            finally:
                recorder.close()

    def _train(self) -> Generator[Event, None, None]:
        course = self.course()
        try:
            yield from self.begin(course)
            with closing(train(course)) as events:
                yield from events
        except GeneratorExit:
            course.dismiss()
            if course.progress.step:
                course.save()
            raise
        if not course.done:
            course.save()
            yield Interrupted(course.progress.step)
        elif self.processes.first:
            yield self.finish(course.progress)
        elif self.processes.in_step:
            self._measure_the_result(course.progress)

    def course(self) -> Course:
        """Return the way through the steps, from the first one or the checkpoint on.

        Raises:
            CheckpointError: the checkpoint cannot be read.
        """
        with self.trainee.alone():
            optimizer = make_optimizer(self.model, self.config)
        processes, wishes = self.processes, self._wishes()
        self._keep_the_start()
        progress, checkpoint = Progress(), self.checkpoint
        if checkpoint:
            progress = processes.together(lambda: load_checkpoint(checkpoint, self.trainee, optimizer))
        else:
            progress.base_loss = self._measure_the_base()

        def save() -> str:
            path = self.folder.checkpoint(progress.step)
            if processes.first:
                save_checkpoint(path, self.trainee, optimizer, progress)
                prune(self.folder.checkpoints, self.config.keep_checkpoints, progress.best_step)
            return str(path)

        course = Course(
            self.trainee, self.task, self.examples, self.config, optimizer, progress, save, wishes
        )
        course.processes = processes
        if self._own_sampler is not None:
            course.sample = self._own_sampler.at
        return course

    @property
    def _own_sampler(self) -> Sampler | None:
        """What answers the prompts in this process: the first does, and those that go in step with it."""
        return self.sampler if self.processes.first or self.processes.in_step else None

    def _measure_the_base(self) -> float | None:
        """Return the base's validation loss, and keep what it makes of general text for the report."""
        if self._measuring is not None:
            self._measuring.before()
        held_out = self.examples[1]
        if not held_out:
            return None
        with self.trainee.alone(), self.trainee.without():
            return evaluate(self.model, self.task, held_out, self.config.micro, self.processes)[0]

    def _measure_the_result(self, progress: Progress) -> None:
        """Put what was chosen on the model, and keep what it makes of general text."""
        self.trainee.read(self.folder.checkpoint(self._chosen(progress)))
        if self._measuring is not None and read_effect(self.folder.path) is not None:
            self._measuring.after()

    def _chosen(self, progress: Progress) -> int:
        return (self.config.keep_best and progress.best_step) or progress.step

    def _wishes(self) -> Callable[[], Wishes]:
        """Return what tells what is asked of the run from outside; the first process reads it, for all."""
        control = Control(self.folder.path)
        if self.processes.first:
            control.begin()
        return control.read if self.processes.count == 1 else SharedWishes(self.processes, control.read)

    @property
    def _measuring(self) -> Measuring | None:
        first = self.processes.first
        if self.general is None or not (first or self.processes.in_step):
            return None
        folder = self.folder.path
        return Measuring(folder, self.trainee, self.task, self.general, self.config.micro, writes=first)

    def _keep_the_start(self) -> None:
        """Keep the adapter as it begins, where it stands on other weights than the base's."""
        if isinstance(self.trainee, AdapterTrainee) and self.trainee.changes_base:
            self.trainee.start = self.folder.path / "start"
            if self.processes.first and not self.trainee.start.exists():
                with new_folder(self.trainee.start) as temporary:
                    self.trainee.write(temporary)

    def probe(self) -> Probe:
        """Return what two steps tell of the run's time and memory; they leave no trace."""
        examples, held_out = self.examples
        general = self._measuring.general.examples if self._measuring is not None else ()
        sampler = self._own_sampler
        sample = None if sampler is None else partial(sampler.at, 0)
        material = Material(examples, held_out, general, sample)
        return probe(self.trainee, self.task, material, self.config, self.processes)

    def begin(self, course: Course) -> Iterator[Event]:
        """Yield the run's first events: that it begins, and how the base alone answers its prompts."""
        steps, examples, step = self.plan.steps, len(self.data.examples), course.progress.step
        yield Started(step, steps, examples, *self.parameters, self.task.isolation)
        if not step:
            with self.trainee.alone(), self.trainee.without():
                samples = list(course.sample(0))
            yield from samples

    def finish(self, progress: Progress) -> Finished:
        """Write the adapter of the best step, or the last, and return the run's last event.

        Raises:
            TrainingError: it is without any effect.
        """
        chosen = self._chosen(progress)
        result = self.folder.model if self.config.full else self.folder.adapter
        with new_folder(result) as temporary:
            self.trainee.publish(self.folder.checkpoint(chosen), temporary)
            habits = self.habits
            write_habits(temporary, habits)
            if self.adapter is not None:
                lora, found = self.adapter.config, self.findings
                text = card(self.config, self.data, progress, lora, found, habits)
                write_text(temporary / "README.md", text)
        self._measure_the_result(progress)
        return Finished(
            progress.step,
            str(result),
            chosen,
            progress.base_loss,
            progress.best_loss,
            progress.seconds,
            peak_memory(),
            progress.ended or "steps",
        )
