"""The training loop: a generator of events that a person can read from top to bottom.

Everything else (progress bars, files, a Stop button) reads what it yields. Closing the generator after any
event stops the run at that step. The optimizer step is the only unit.
"""

import math
import time
from collections.abc import Callable, Generator, Sequence
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

__all__ = ["Plan", "evaluate", "make_optimizer", "perplexity", "plan", "train"]


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


def train(
    model: PeftModel,
    task: Task,
    data: tuple[Sequence[Any], Sequence[Any]],
    config: RunConfig,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    save: Callable[[], str],
) -> Generator[Event, None, None]:
    """Train from `progress.step` on and yield what happens; `progress` is kept up to date.

    `data` is (training examples, validation examples); the second may be empty. `save` writes a checkpoint
    and returns its path.

    Raises:
        TrainingError: the loss or the gradient is not finite.
    """
    examples, held_out = data
    timing = plan(config, len(examples))
    accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu")
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    while progress.step < timing.steps:
        began = time.perf_counter()
        rate = learning_rate(config, progress.step, timing.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        indices = batch_at(progress.step, len(examples), config.batch_size, config.seed)
        batch = [examples[index] for index in indices]
        loss = _accumulate(accelerator, model, task, batch, config.micro)
        norm = float(accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm))
        _check_finite({"loss": loss, "gradient": norm}, progress.step + 1, rate)
        optimizer.step()
        optimizer.zero_grad()
        progress.step += 1
        seconds = time.perf_counter() - began
        progress.seconds += seconds
        tokens = sum(task.size(example) for example in batch)
        epoch = progress.step / timing.steps_per_epoch
        stepped = Stepped(progress.step, loss, rate, norm, tokens, seconds, epoch)

        last = progress.step == timing.steps
        evaluated = None
        if held_out and (last or progress.step % timing.eval_steps == 0):
            evaluated = _evaluate_step(model, task, held_out, config, progress)
            _check_finite({"validation loss": evaluated.loss}, progress.step, rate)
        # A reader that stops here finds the step whole: evaluated, and `progress` ready to be saved.
        yield stepped
        if evaluated:
            yield evaluated
        if last or progress.step % timing.save_steps == 0 or (evaluated and evaluated.best):
            yield Saved(progress.step, save())


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


def _evaluate_step(
    model: Any, task: Task, held_out: Sequence[Any], config: RunConfig, progress: Progress
) -> Evaluated:
    loss, tokens = evaluate(model, task, held_out, config.micro)
    best = progress.best_loss is None or loss < progress.best_loss
    if best:
        progress.best_loss, progress.best_step = loss, progress.step
    return Evaluated(progress.step, loss, tokens, best)


def _check_finite(values: dict[str, float], step: int, rate: float) -> None:
    for what, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is not finite at step {step}, with learning rate {rate:.2e}; "
                "the last good checkpoint is kept. Try a lower --learning-rate, or --dtype float32."
            )
