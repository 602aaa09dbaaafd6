"""The training loop: a generator of events that a person can read from top to bottom.

Everything else (progress bars, files, a Stop button) reads what it yields. Closing the generator after any
event stops the run at that step. The optimizer step is the only unit.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from loralab.adapters import PeftModel
from loralab.errors import TrainingError
from loralab.training.checkpoint import Progress
from loralab.training.config import RunConfig
from loralab.training.events import Evaluated, Event, Saved, Stepped
from loralab.training.order import batch_at, steps_per_epoch
from loralab.training.schedule import learning_rate
from loralab.training.tasks import Task

__all__ = [
    "Course",
    "Plan",
    "accelerator_for",
    "alone",
    "evaluate",
    "make_optimizer",
    "perplexity",
    "plan",
    "train",
]


@dataclass(frozen=True)
class Plan:
    """When things happen in a run, in optimizer steps."""

    steps: int
    eval_steps: int
    save_steps: int
    steps_per_epoch: int


def plan(config: RunConfig, examples: int) -> Plan:
    """Return when the run will do what."""
    per_epoch = steps_per_epoch(examples, config.batch_size)
    steps = config.max_steps or max(1, round(config.epochs * per_epoch))
    eval_steps = config.eval_steps or max(1, round(steps / 10))
    return Plan(steps, eval_steps, config.save_steps or eval_steps, per_epoch)


def make_optimizer(model: PeftModel, config: RunConfig) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters; its states are as small as the adapter."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)


@dataclass
class Course:
    """A run's way through its steps: all of a step but its gradient. `progress` is kept up to date."""

    model: PeftModel
    task: Task
    data: tuple[Sequence[Any], Sequence[Any]]
    """Training examples and validation examples; the second may be empty."""
    config: RunConfig
    optimizer: Any
    progress: Progress
    save: Callable[[], str]
    """Writes a checkpoint and returns its path."""
    adapter: str = "default"
    """The run's adapter, of those that the model may have."""

    @property
    def plan(self) -> Plan:
        """When the run does what."""
        return plan(self.config, len(self.data[0]))

    @property
    def done(self) -> bool:
        """Whether all steps are made."""
        return self.progress.step >= self.plan.steps

    def batch(self) -> list[Any]:
        """Return the examples of the step that comes next."""
        examples = self.data[0]
        indices = batch_at(self.progress.step, len(examples), self.config.batch_size, self.config.seed)
        return [examples[index] for index in indices]

    def step(
        self, accelerator: Accelerator, batch: Sequence[Any], loss: float, began: float
    ) -> Generator[Event, None, None]:
        """Step along the gradient of `batch` that the parameters have, evaluate and save when it is time.

        Raises:
            TrainingError: the loss or the gradient is not finite.
        """
        progress, timing = self.progress, self.plan
        rate = learning_rate(self.config, progress.step, timing.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = float(accelerator.clip_grad_norm_(trained, self.config.max_grad_norm))
        _check_finite({"loss": loss, "gradient": norm}, progress.step + 1, rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1
        seconds = time.perf_counter() - began
        progress.seconds += seconds
        tokens = sum(self.task.size(example) for example in batch)
        epoch = progress.step / timing.steps_per_epoch
        stepped = Stepped(progress.step, loss, rate, norm, tokens, seconds, epoch)

        evaluated = None
        if self.data[1] and (self.done or progress.step % timing.eval_steps == 0):
            evaluated = self._evaluate()
            _check_finite({"validation loss": evaluated.loss}, progress.step, rate)
        # A reader that stops here finds the step whole: evaluated, and `progress` ready to be saved.
        yield stepped
        if evaluated:
            yield evaluated
        if self.done or progress.step % timing.save_steps == 0 or (evaluated and evaluated.best):
            yield Saved(progress.step, self.save())

    def _evaluate(self) -> Evaluated:
        with alone(self.model, self.adapter):
            loss, tokens = evaluate(self.model, self.task, self.data[1], self.config.micro)
        progress = self.progress
        best = progress.best_loss is None or loss < progress.best_loss
        if best:
            progress.best_loss, progress.best_step = loss, progress.step
        return Evaluated(progress.step, loss, tokens, best)


def train(course: Course) -> Generator[Event, None, None]:
    """Make the steps that are left and yield what happens.

    Raises:
        TrainingError: the loss or the gradient is not finite.
    """
    accelerator = accelerator_for(course.model)
    model, course.optimizer = accelerator.prepare(course.model, course.optimizer)
    model.train()
    while not course.done:
        began = time.perf_counter()
        batch = course.batch()
        loss = _accumulate(accelerator, model, course.task, batch, course.config.micro)
        yield from course.step(accelerator, batch, loss, began)


def accelerator_for(model: Any) -> Accelerator:
    """Return what prepares a model and its optimizers for the device that it is on."""
    return Accelerator(cpu=next(model.parameters()).device.type == "cpu")


@contextmanager
def alone(model: PeftModel, adapter: str) -> Iterator[None]:
    """Within the block this adapter alone runs and is trainable."""
    active = model.base_model.active_adapters
    if active == [adapter]:
        yield
        return
    model.base_model.set_adapter(adapter)
    try:
        yield
    finally:
        model.base_model.set_adapter(active)


@torch.no_grad()
def evaluate(model: Any, task: Task, examples: Sequence[Any], micro_batch: int) -> tuple[float, int]:
    """Return (mean loss a trained token in nats, trained tokens) without changing the model's mode."""
    was_training = model.training
    model.eval()
    by_size = sorted(examples, key=task.size, reverse=True)
    total = 0.0
    for start in range(0, len(by_size), micro_batch):
        total += float(task.loss(model, by_size[start : start + micro_batch]))
    model.train(was_training)
    weight = sum(task.weight(example) for example in examples)
    return total / weight, round(weight)


def perplexity(loss: float) -> float:
    """Return exp(loss), or 1e304 where that would be more than a float can hold."""
    return math.exp(min(loss, 700.0))


def _accumulate(accelerator: Accelerator, model: Any, task: Task, batch: Sequence[Any], micro: int) -> float:
    """Add the batch's gradient to the parameters, and return its mean loss.

    Every micro-batch is divided by the weight of the whole batch, so the gradient does not depend on how the
    batch is cut.
    """
    weight = sum(task.weight(example) for example in batch)
    total = 0.0
    for start in range(0, len(batch), micro):
        loss = task.loss(model, batch[start : start + micro]) / weight
        accelerator.backward(loss)
        total += float(loss.detach())
    return total


def _check_finite(values: dict[str, float], step: int, rate: float) -> None:
    for what, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is not finite at step {step}, with learning rate {rate:.2e}; "
                "the last good checkpoint is kept. Try a lower --learning-rate, or --dtype float32."
            )
