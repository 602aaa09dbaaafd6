"""Two steps before a run, from which its time and memory are told. The run does not feel them."""

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loralab.data.examples import Examples
from loralab.data.types import Example
from loralab.training.config import RunConfig
from loralab.training.devices import ALONE, Processes
from loralab.training.loop import accumulate, evaluate, plan
from loralab.training.optimizers import make_optimizer, set_rate
from loralab.training.order import batch_at
from loralab.training.record import peak_memory
from loralab.training.tasks import Task
from loralab.training.trainee import Trainee

__all__ = ["Material", "Probe", "probe"]

_EVALUATED = 64
_MOST = 48
_SECONDS = 3.0
"""Steps and examples are timed until so much time is over, or so many of them."""


@dataclass(frozen=True)
class Material:
    """What a run passes through its model."""

    examples: Examples
    """To train on."""
    held_out: Sequence[Example] = ()
    """To validate on."""
    general: Sequence[Example] = ()
    """To measure forgetting on, before and after."""
    sample: Callable[[], object] | None = None
    """Answers the run's prompts, if it has some."""


@dataclass(frozen=True)
class Probe:
    """What two steps tell of a run."""

    step_seconds: float
    """Of a step of the mean number of tokens."""
    tokens_per_second: float
    evaluation_seconds: float
    """Of one evaluation; 0 without validation data."""
    sampling_seconds: float
    """Of answering the run's prompts once; 0 without."""
    seconds: float
    """Of the whole run."""
    peak_memory: int
    """Of the process, loading included, in bytes; on an accelerator, of that."""


def probe(
    trainee: Trainee, task: Task, material: Material, config: RunConfig, processes: Processes = ALONE
) -> Probe:
    """Make two steps that leave no trace, the first of the largest examples, and return what they tell.

    The weights stay as they are to the bit, and so do torch's random generators. Several processes make the
    steps together, and all have to.
    """
    timing = plan(config, len(material.examples))
    was_training = trainee.model.training
    loading = _peak_since()
    with torch.random.fork_rng():
        _reset_peak()
        rate = _rate(trainee, task, material.examples, config, processes)
        evaluation = _time_evaluation(trainee, task, material.held_out, config.micro, processes)
        # What forgetting is measured by is passed through twice: for its loss, and for the likeliest tokens.
        own = processes if processes.in_step else ALONE
        general = 2 * _time_evaluation(trainee, task, material.general, config.micro, own)
        sampling = _time_sampling(trainee, material)
        peak = max(loading, _peak_since())
    trainee.model.train(was_training)
    step = material.examples.tokens / timing.steps_per_epoch / rate
    besides = timing.evaluations * evaluation + timing.samplings * sampling + 2 * general
    return Probe(step, rate, evaluation, sampling, timing.steps * step + besides, peak)


def _rate(trainee: Trainee, task: Task, examples: Examples, config: RunConfig, processes: Processes) -> float:
    """Return the tokens a second of steps that are made at a learning rate of 0.

    The largest step comes first, for its memory, and is not counted: it also pays for what the first one of
    all pays. Of steps that are over at once several are counted.
    """
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

        lengths = examples.lengths
        step(heapq.nlargest(config.batch_size, range(len(lengths)), key=lengths.__getitem__))
        tokens, seconds, number = 0, 0.0, 0

        def more() -> int:
            return min(_MOST, 1 + int(_SECONDS / seconds))

        steps = 1
        while number < steps:
            indices = batch_at(number, len(lengths), config.batch_size, config.seed)
            tokens += sum(lengths[index] for index in indices)
            seconds += step(indices)
            number += 1
            if number == 1:
                steps = processes.of_first(more)
    return tokens / seconds


def _time_evaluation(
    trainee: Trainee, task: Task, examples: Sequence[Any], micro: int, processes: Processes
) -> float:
    """Return the seconds of an evaluation on the examples, told from some of them."""
    if not len(examples):
        return 0.0
    with trainee.alone():

        def of(count: int) -> float:
            some = [examples[index] for index in range(0, len(examples), max(1, len(examples) // count))]
            began = time.perf_counter()
            evaluate(trainee.model, task, some, micro, processes)
            return (time.perf_counter() - began) / len(some)

        each = of(micro)
        count = processes.of_first(lambda: min(_EVALUATED, int(_SECONDS / each)))
        return (of(count) if count > micro else each) * len(examples)


def _time_sampling(trainee: Trainee, material: Material) -> float:
    if material.sample is None:
        return 0.0
    with trainee.alone():
        began = time.perf_counter()
        material.sample()
    return time.perf_counter() - began


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
