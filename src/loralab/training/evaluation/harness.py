"""Handing a model over to lm-eval-harness, with the adapter that is active on it."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loralab.errors import ConfigError, did_you_mean
from loralab.models import BaseModel

__all__ = ["check_tasks", "harness_version", "run_task", "task_digest"]


def harness_version() -> str:
    """Return the version of lm-eval-harness.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise ConfigError("--tasks needs lm-eval-harness: pip install lm_eval.") from None


def check_tasks(names: Sequence[str]) -> Any:
    """Return the harness's own registry of tasks, which knows all of these. A .yaml file is one's own task.

    Raises:
        ConfigError: there is no such task or file, or lm-eval-harness is not installed.
    """
    harness_version()
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    for name in names:
        if name.endswith(".yaml"):
            if not Path(name).is_file():
                raise ConfigError(f"{name}: no such file; expected the .yaml of a task.")
        elif name not in manager.all_tasks:
            raise ConfigError(f"unknown task {name!r}.{did_you_mean(name, manager.all_tasks)}")
    return manager


def task_digest(name: str) -> str:
    """Return what tells a task from others: its name, or the content of its file."""
    return hashlib.sha256(Path(name).read_bytes()).hexdigest() if name.endswith(".yaml") else name


def run_task(
    manager: Any, name: str, model: Any, base: BaseModel, size: tuple[int | None, int]
) -> dict[str, float]:
    """Return what the harness measures on one task, by the names that it gives the numbers.

    Args:
        model: the base's own model, on which an adapter may be active.
        size: the questions at most, None for all; and the questions computed at once.

    Raises:
        ConfigError: the harness cannot load the task or its data.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    limit, batch = size
    speaker = HFLM(pretrained=model, tokenizer=base.tokenizer, backend="causal", batch_size=batch)
    spec = str(Path(name).absolute()) if name.endswith(".yaml") else name
    try:
        found = simple_evaluate(
            model=speaker, tasks=[spec], limit=limit, task_manager=manager, log_samples=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"task {name}: lm-eval-harness could not run it: {reason}") from error
    return _numbers(name, (found or {}).get("results", {}))


def _numbers(name: str, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the numbers of a task; of one that stands for several, each under its task's name."""
    chosen = {name: results[name]} if name in results else results
    return {
        (key.removesuffix(",none") if len(chosen) == 1 else f"{task}/{key.removesuffix(',none')}"): value
        for task, values in chosen.items()
        for key, value in values.items()
        if isinstance(value, int | float) and key not in ("sample_len", "sample_count")
    }
