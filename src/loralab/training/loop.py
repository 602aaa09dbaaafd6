"""The training loop: a generator of events that a person can read from top to bottom.

Everything else (progress bars, files, a Stop button) reads what it yields. Closing the generator after any
event stops the run at that step. The optimizer step is the only unit.
"""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loralab.errors import TrainingError
from loralab.training.checkpoint import Progress
from loralab.training.config import RunConfig
from loralab.training.control import Wishes
from loralab.training.devices import ALONE, Processes, SharedWishes
from loralab.training.events import Evaluated, Event, Paused, Saved, Stepped
from loralab.training.optimizers import set_rate, settled
from loralab.training.order import batch_at, steps_per_epoch
from loralab.training.schedule import learning_rate
from loralab.training.smoothing import SETTLED, Smoothed
from loralab.training.tasks import Task
from loralab.training.trainee import Trainee

__all__ = ["Course", "Plan", "accumulate", "evaluate", "perplexity", "plan", "train"]


@dataclass(frozen=True)
class Plan:
    """When things happen in a run, in optimizer steps."""

    steps: int
    eval_steps: int
    save_steps: int
    sample_steps: int
    steps_per_epoch: int

    @property
    def evaluations(self) -> int:
        """How many there are where there is validation data: of the base, on the way, and at the end."""
        return 1 + math.ceil(self.steps / self.eval_steps)

    @property
    def samplings(self) -> int:
        """How many times prompts are answered where there are some: by the base, on the way, at the end."""
        return 1 + math.ceil(self.steps / self.sample_steps)


def plan(config: RunConfig, examples: int) -> Plan:
    """Return when the run will do what."""
    per_epoch = steps_per_epoch(examples, config.batch_size)
    steps = config.max_steps or max(1, round(config.epochs * per_epoch))
    eval_steps = config.eval_steps or max(1, round(steps / 10))
    save_steps, sample_steps = config.save_steps or eval_steps, config.sample_steps or eval_steps
    return Plan(steps, eval_steps, save_steps, sample_steps, per_epoch)


_PAUSE = 0.2
"""Seconds between two looks at whether a pause is over."""


@dataclass
class Course:
    """A run's way through its steps: all of a step but its gradient. `progress` is kept up to date."""

    trainee: Trainee
    task: Task
    data: tuple[Sequence[Any], Sequence[Any]]
    """Training examples and validation examples; the second may be empty."""
    config: RunConfig
    optimizer: Any
    progress: Progress
    save: Callable[[], str]
    """Writes a checkpoint and returns its path."""
    wishes: Callable[[], Wishes] = Wishes
    """Returns what is asked of the run from outside."""
    sample: Callable[[int], Iterable[Event]] = lambda step: ()
    """Answers the run's prompts at a step, when it is time."""
    processes: Processes = ALONE

    @property
    def plan(self) -> Plan:
        """When the run does what."""
        return plan(self.config, len(self.data[0]))

    @property
    def done(self) -> bool:
        """Whether all steps are made, or the run has ended before."""
        return bool(self.progress.ended) or self.progress.step >= self.plan.steps

    def batch(self) -> list[Any]:
        """Return the examples of the step that comes next."""
        examples = self.data[0]
        indices = batch_at(self.progress.step, len(examples), self.config.batch_size, self.config.seed)
        return [examples[index] for index in indices]

    def dismiss(self) -> None:
        """Let the other processes stop here, where the first one does."""
        if isinstance(self.wishes, SharedWishes) and self.processes.first and not self.done:
            self.wishes.dismiss()

    def step(self, batch: Sequence[Any], loss: float, began: float) -> Generator[Event, None, None]:
        """Step along the gradient of `batch` that the parameters have, evaluate and save when it is time.

        Raises:
            TrainingError: the loss or the gradient is not finite.
        """
        progress, timing = self.progress, self.plan
        rate = learning_rate(self.config, progress.step, timing.steps)
        set_rate(self.optimizer, rate)
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(trained, self.config.max_grad_norm))
        _check_finite({"loss": loss, "gradient": norm}, progress.step + 1, rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1
        seconds = time.perf_counter() - began
        progress.seconds += seconds
        tokens = sum(self.task.size(example) for example in batch)
        epoch = progress.step / timing.steps_per_epoch
        smoothed = self._smooth(loss)
        stepped = Stepped(progress.step, loss, rate, norm, tokens, seconds, epoch, smoothed)

        evaluated = None
        if self.data[1] and (self.done or progress.step % timing.eval_steps == 0):
            evaluated = self._evaluate()
            _check_finite({"validation loss": evaluated.loss}, progress.step, rate)
        # A reader that stops here finds the step whole: evaluated, and `progress` ready to be saved.
        yield stepped
        if evaluated:
            yield evaluated
        if self.done or progress.step % timing.sample_steps == 0:
            yield from self._samples()
        if self.done or progress.step % timing.save_steps == 0 or (evaluated and evaluated.best):
            yield Saved(progress.step, self.save())

    def _smooth(self, loss: float) -> float:
        """Return the smoothed loss, and end the run where that is low enough."""
        progress = self.progress
        mean = Smoothed(progress.smooth_total, progress.smooth_weight)
        smoothed = mean.add(loss)
        progress.smooth_total, progress.smooth_weight = mean.total, mean.weight
        goal = self.wishes().stop_at_loss or self.config.stop_at_loss
        if goal is not None and smoothed <= goal and progress.step >= SETTLED:
            progress.ended = "stop_at_loss"
        return smoothed

    def _samples(self) -> Iterator[Event]:
        with self.trainee.alone(), settled(self.optimizer):
            yield from list(self.sample(self.progress.step))

    def _evaluate(self) -> Evaluated:
        with self.trainee.alone(), settled(self.optimizer):
            model, micro = self.trainee.model, self.config.micro
            loss, tokens = evaluate(model, self.task, self.data[1], micro, self.processes)
        progress = self.progress
        best = progress.best_loss is None or loss < progress.best_loss
        progress.waited = 0 if best else progress.waited + 1
        if best:
            progress.best_loss, progress.best_step = loss, progress.step
        if self.config.early_stopping is not None and progress.waited >= self.config.early_stopping:
            progress.ended = "early_stopping"
        return Evaluated(progress.step, loss, tokens, best)


def train(course: Course) -> Generator[Event, None, None]:
    """Make the steps that are left, as long as nobody asks for a stop, and yield what happens.

    Raises:
        TrainingError: the loss or the gradient is not finite.
    """
    model, processes = course.trainee.model, course.processes
    model.train()
    saves = course.wishes().saves
    while not course.done:
        # Of several processes each question is a message to all.
        asked = course.wishes()
        if asked.stop:
            return
        if asked.pause:
            yield Paused(course.progress.step)
            time.sleep(_PAUSE)
            continue
        began = time.perf_counter()
        batch = course.batch()
        processes.begin_step(course.config.seed, course.progress.step)
        loss = accumulate(model, course.task, batch, course.config.micro, processes)
        yield from course.step(batch, loss, began)
        before, saves = saves, course.wishes().saves
        if saves > before:
            yield Saved(course.progress.step, course.save())


@torch.no_grad()
def evaluate(
    model: Any, task: Task, examples: Sequence[Any], micro_batch: int, processes: Processes = ALONE
) -> tuple[float, int]:
    """Return (mean loss a trained token in nats, trained tokens) without changing the model's mode.

    Several processes share the work, and all return the same.
    """
    was_training = model.training
    model.eval()
    by_size = sorted(examples, key=task.size, reverse=True)
    total = 0.0
    with processes.passing():
        for part, counts in processes.passes(by_size, task.size, micro_batch):
            loss = float(task.loss(model, part))
            total += loss if counts else 0.0
    model.train(was_training)
    weight = sum(task.weight(example) for example in examples)
    return processes.total([total])[0] / weight, round(weight)


def perplexity(loss: float) -> float:
    """Return exp(loss), or 1e304 where that would be more than a float can hold."""
    return math.exp(min(loss, 700.0))


def accumulate(
    model: Any, task: Task, batch: Sequence[Any], micro: int, processes: Processes = ALONE
) -> float:
    """Add the batch's gradient to the parameters, and return its mean loss.

    Every micro-batch is divided by the weight of the whole batch, so the gradient does not depend on how the
    batch is cut, nor on which process computes which part.
    """
    weight = sum(task.weight(example) for example in batch)
    total = 0.0
    with processes.passing():
        for part, counts in processes.passes(batch, task.size, micro):
            loss = task.loss(model, part) / weight
            if not counts:
                loss = loss * 0.0
            loss.backward()
            total += float(loss.detach())
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return processes.add_gradients(trained, total)


def _check_finite(values: dict[str, float], step: int, rate: float) -> None:
    for what, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is not finite at step {step}, with learning rate {rate:.2e}; what was saved "
                "before is kept. Try a lower --learning-rate or --lora-alpha, or --dtype float32 if "
                "it is not."
            )
