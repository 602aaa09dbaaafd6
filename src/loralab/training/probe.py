"""Two steps before a run, from which its time and memory are told. The run does not feel them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loralab.training.config import RunConfig
from loralab.training.devices import ALONE, Processes
from loralab.training.loop import accumulate, evaluate, plan
from loralab.training.optimizers import make_optimizer, set_rate
from loralab.training.order import batch_at
from loralab.training.record import peak_memory
from loralab.training.tasks import Task
from loralab.training.trainee import Trainee

__all__ = ["Probe", "probe"]

Data = tuple[Sequence[Any], Sequence[Any]]
_EVALUATED = 64
"""Validation examples that are timed."""
_MOST = 48
_SECONDS = 3.0
"""Steps are timed until so much time is over, or so many are made."""


@dataclass(frozen=True)
class Probe:
    """What two steps tell of a run."""

    step_seconds: float
    """Of a step of the mean number of tokens."""
    tokens_per_second: float
    evaluation_seconds: float
    """Of one evaluation; 0 without validation data."""
    seconds: float
    """Of the whole run."""
    peak_memory: int
    """Of the process, loading included, in bytes; on an accelerator, of that."""


def probe(trainee: Trainee, task: Task, data: Data, config: RunConfig, processes: Processes = ALONE) -> Probe:
    """Make two steps that leave no trace, the first of the largest examples, and return what they tell.

    `data` is the examples to train on and those to validate on. The weights stay as they are to the bit, and
    so do torch's random generators. Several processes make the steps together, and all have to.
    """
    examples, held_out = data
    lengths = [task.size(example) for example in examples]
    timing = plan(config, len(examples))
    was_training = trainee.model.training
    loading = _peak_since()
    with torch.random.fork_rng():
        _reset_peak()
        rate = _rate(trainee, task, data, config, processes)
        evaluation = _time_evaluation(trainee, task, held_out, config.micro, processes)
        peak = max(loading, _peak_since())
    trainee.model.train(was_training)
    step = sum(lengths) / timing.steps_per_epoch / rate
    evaluations = timing.steps // timing.eval_steps + 1 if len(held_out) else 0
    return Probe(step, rate, evaluation, timing.steps * step + evaluations * evaluation, peak)


def _rate(trainee: Trainee, task: Task, data: Data, config: RunConfig, processes: Processes) -> float:
    """Return the tokens a second of steps that are made at a learning rate of 0.

    The largest step comes first, for its memory, and is not counted: it also pays for what the first one of
    all pays. Of steps that are over at once several are counted.
    """
    examples = data[0]
    model = trainee.model
    with trainee.alone():
        optimizer = make_optimizer(model, config)
        set_rate(optimizer, 0.0)
        model.train()

        def step(indices: Sequence[int]) -> float:
            began = time.perf_counter()
            accumulate(model, task, [examples[index] for index in indices], config.micro, processes)
            optimizer.step()
            optimizer.zero_grad()
            return time.perf_counter() - began

        largest = sorted(range(len(examples)), key=lambda index: -task.size(examples[index]))
        step(largest[: config.batch_size])
        order = [batch_at(number, len(examples), config.batch_size, config.seed) for number in range(_MOST)]
        seconds = [step(order[0])]
        more = processes.of_first(lambda: min(_MOST - 1, int(_SECONDS / seconds[0])))
        seconds += [step(indices) for indices in order[1 : 1 + more]]
    tokens = sum(task.size(examples[index]) for indices in order[: 1 + more] for index in indices)
    return tokens / sum(seconds)


def _time_evaluation(
    trainee: Trainee, task: Task, held_out: Sequence[Any], micro: int, processes: Processes
) -> float:
    if not len(held_out):
        return 0.0
    some = [held_out[index] for index in range(0, len(held_out), max(1, len(held_out) // _EVALUATED))]
    with trainee.alone():
        evaluate(trainee.model, task, some[:micro], micro, processes)
        began = time.perf_counter()
        evaluate(trainee.model, task, some, micro, processes)
    return (time.perf_counter() - began) * len(held_out) / len(some)


def _reset_peak() -> None:
    """Let the largest memory of the process be counted from here, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        marks.write_text("5")


def _peak_since() -> int:
    """Return the largest memory since it was reset, in bytes."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return peak_memory()
