"""Checkpoints: all that a run needs to go on exactly where it was. No pickles.

A checkpoint folder is an adapter folder (PEFT's two files; of a full fine-tune, a model folder). Beside them
are ``training.safetensors`` (the optimizer's tensors and the state of the random generators) and
``training.json`` (the rest).
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loralab.errors import CheckpointError, LoralabError
from loralab.files import new_folder, write_json
from loralab.training.optimizers import settled
from loralab.training.trainee import Trainee

__all__ = ["Progress", "complete", "latest", "load_checkpoint", "prune", "save_checkpoint"]

TENSORS = "training.safetensors"
STATE = "training.json"


@dataclass
class Progress:
    """Where a run is. The place in the data follows from the step."""

    step: int = 0
    """Optimizer steps done."""
    best_step: int | None = None
    best_loss: float | None = None
    base_loss: float | None = None
    """Validation loss of the base alone."""
    seconds: float = 0.0
    """Time spent training, over all sittings."""
    smooth_total: float = 0.0
    smooth_weight: float = 0.0
    """The smoothed loss, see `Smoothed`."""
    waited: int = 0
    """Evaluations since the best one."""
    ended: str = ""
    """Why the run ended before its last step, if it did."""


def save_checkpoint(folder: Path, trainee: Trainee, optimizer: Any, progress: Progress) -> None:
    """Write a checkpoint folder, whole or not at all; an adapter is in it under the name "default".

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    tensors = {f"rng.{name}": state for name, state in _rng_states().items()}
    scalars: dict[str, float] = {}
    for name, parameter in _trained(trainee, optimizer):
        if hasattr(optimizer, "eval"):
            # What it trains at; what it is judged by is what the trainee writes.
            tensors[f"point.{name}"] = parameter.detach().cpu().clone()
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}.{key}"] = value.detach().cpu().contiguous()
            elif value is not None:
                scalars[f"optimizer.{name}.{key}"] = value
    groups = [
        {key: value for key, value in group.items() if isinstance(value, int | float) and key != "lr"}
        for group in optimizer.param_groups
    ]
    with new_folder(folder) as temporary, settled(optimizer):
        trainee.write(temporary)
        save_file(tensors, temporary / TENSORS)
        write_json(
            temporary / STATE, asdict(progress) | {"optimizer": {"groups": groups, "scalars": scalars}}
        )


def load_checkpoint(folder: Path, trainee: Trainee, optimizer: Any) -> Progress:
    """Put a trainee, its optimizer and the random generators into the state that `folder` holds.

    Raises:
        CheckpointError: a file is missing or damaged, or is of another model.
    """
    try:
        trainee.read(folder)
        tensors = load_file(folder / TENSORS)
        state = json.loads((folder / STATE).read_text())
        kept = state.pop("optimizer", {"groups": [], "scalars": {}})
        progress = Progress(**state)
    except (LoralabError, SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: not a complete checkpoint ({error}). Delete that folder to go on from the one before."
        ) from None
    for group, values in zip(optimizer.param_groups, kept["groups"], strict=False):
        group.update(values)
    for name, parameter in _trained(trainee, optimizer):
        if f"point.{name}" in tensors:
            parameter.data.copy_(tensors[f"point.{name}"])
        start = f"optimizer.{name}."
        found = {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}
        optimizer.state[parameter] = {
            key: value if key == "step" else value.to(parameter.device) for key, value in found.items()
        } | {key.removeprefix(start): v for key, v in kept["scalars"].items() if key.startswith(start)}
    _set_rng_states({key.removeprefix("rng."): t for key, t in tensors.items() if key.startswith("rng.")})
    return progress


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint in a run's checkpoints folder; half-written ones never count."""
    found = complete(folder)
    return found[-1] if found else None


def complete(folder: Path) -> list[Path]:
    """Return the checkpoints in a run's checkpoints folder, the oldest first."""
    found = [path for path in folder.glob("*") if path.name.isdecimal() and (path / STATE).is_file()]
    return sorted(found, key=lambda path: int(path.name))


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Delete a run's checkpoints but the newest and the best, and what a crash left half-written."""
    newest = complete(folder)[-keep:]
    best = None if best_step is None else f"{best_step:06d}"
    for path in folder.iterdir():
        if path not in newest and path.name != best and (path.name.isdecimal() or path.name.startswith(".")):
            shutil.rmtree(path)


def _trained(trainee: Trainee, optimizer: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the optimizer's parameters under the names that they have when the adapter is "default"."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in trainee.model.named_parameters():
        if id(parameter) in own:
            before, found, after = f"{name}.".rpartition(f".{trainee.name}.")
            yield (f"{before}.default.{after}"[:-1] if found else name), parameter


def _rng_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda0"] = torch.cuda.get_rng_state()  # of this process's device; it uses no other
    return states


def _set_rng_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda0" in states:
        torch.cuda.set_rng_state(states["cuda0"])
