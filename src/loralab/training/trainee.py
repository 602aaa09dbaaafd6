"""What a run trains: an adapter on a model, or all of the model's weights."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from loralab.adapters import PeftModel, get_peft_model, read_adapter, write_adapter
from loralab.adapters.saving import for_original_base
from loralab.adapters.store import find_adapter
from loralab.core.adapter import Adapter
from loralab.core.inits import changes_base
from loralab.errors import CheckpointError, ConfigError, TrainingError
from loralab.models import BaseModel
from loralab.models.quiet import quiet
from loralab.training.adapting import adapter_config, soften_start
from loralab.training.config import RunConfig

__all__ = ["AdapterTrainee", "FullTrainee", "Trainee", "make_trainees"]


class Trainee(Protocol):
    """What the loop and the checkpoints know of what is trained."""

    model: Any
    name: str
    """The name of its adapter on the model, or "default"."""

    def alone(self) -> Any:
        """Return a context in which this trainee alone runs and is trainable."""

    def without(self) -> Any:
        """Return a context in which the model is the base alone, before the first step."""

    def parameters(self) -> tuple[int, int]:
        """Return the numbers of trainable parameters, and of those of the base and the trainee together."""

    def write(self, folder: Path) -> None:
        """Write its weights into a folder. Raises CheckpointError."""

    def read(self, folder: Path) -> None:
        """Take the weights that `write` wrote. Raises as reading does."""

    def publish(self, checkpoint: Path, folder: Path) -> None:
        """Copy its weights from a checkpoint into a folder that others can use.

        Raises:
            TrainingError: it would change nothing.
        """


class AdapterTrainee:
    """An adapter on a model that may have others."""

    def __init__(self, model: PeftModel, name: str = "default") -> None:
        self.model = model
        self.name = name
        self.start: Path | None = None
        """Where it lies as it was before the first step, if its start gave the base other weights."""

    @property
    def adapter(self) -> Adapter:
        """The adapter as it is now; its tensors are the model's own, not copies."""
        return self.model.base_model.adapter(self.name)

    @property
    def changes_base(self) -> bool:
        """Whether its start gave the base other weights, as PiSSA's does."""
        return changes_base(self.adapter.config.init_lora_weights)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within the block this adapter alone runs and is trainable."""
        lora = self.model.base_model
        active = lora.active_adapters
        if active == [self.name]:
            yield
            return
        lora.set_adapter(self.name)
        try:
            yield
        finally:
            lora.set_adapter(active)

    def without(self) -> Any:
        """Return a context in which the model is the base alone, before the first step."""
        return nullcontext() if self.changes_base else self.model.disable_adapter()

    def parameters(self) -> tuple[int, int]:
        """Return the numbers of trainable parameters, and of those of the base and the adapter together."""
        everyones, total = self.model.get_nb_trainable_parameters()
        with self.alone():
            own, _ = self.model.get_nb_trainable_parameters()
        return own, total - everyones + own

    def write(self, folder: Path) -> None:
        """Write the adapter's two files."""
        write_adapter(self.adapter, folder)

    def read(self, folder: Path) -> None:
        """Take the tensors of the adapter there. Raises AdapterError."""
        self.model.base_model.load(self.name, read_adapter(folder))

    def publish(self, checkpoint: Path, folder: Path) -> None:
        """Write the adapter of a checkpoint; one that stands on changed weights is written for the base.

        Raises:
            TrainingError: every B is zero.
        """
        adapter = read_adapter(checkpoint)
        if self.start is not None:
            adapter = for_original_base(adapter, self.start)
        if not any(factors.norm() > 0 for factors in adapter.modules().values()):
            raise TrainingError(
                "the trained adapter changes nothing: every B is still zero. Is the learning rate too low?"
            )
        write_adapter(adapter, folder)


class FullTrainee:
    """All weights of a model, for comparison."""

    name = "default"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.requires_grad_(True)
        self._tokenizer = tokenizer

    def alone(self) -> Any:
        """Return an empty context: nothing else is there."""
        return nullcontext()

    def without(self) -> Any:
        """Return an empty context: before the first step the model is the base."""
        return nullcontext()

    def parameters(self) -> tuple[int, int]:
        """Return the number of parameters, twice."""
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return count, count

    def write(self, folder: Path) -> None:
        """Write a model folder, with its tokenizer."""
        with quiet():
            self.model.save_pretrained(folder)
            self._tokenizer.save_pretrained(folder)

    def read(self, folder: Path) -> None:
        """Take the weights of the model folder.

        Raises:
            CheckpointError: they are damaged or of another model.
        """
        for file in sorted(folder.glob("model*.safetensors")):
            try:
                _, unexpected = self.model.load_state_dict(load_file(file), strict=False)
            except (SafetensorError, RuntimeError) as error:
                raise CheckpointError(f"{file}: not the weights of this model ({error}).") from None
            if unexpected:
                raise CheckpointError(f"{file}: not the weights of this model (it has no {unexpected[0]}).")

    def publish(self, checkpoint: Path, folder: Path) -> None:
        """Copy the model folder."""
        for file in checkpoint.iterdir():
            if not file.name.startswith("training."):
                shutil.copyfile(file, folder / file.name)


def make_trainees(configs: Sequence[RunConfig], base: BaseModel) -> list[Trainee]:
    """Put what each run trains on the base. Every adapter begins as it would alone.

    Raises:
        ConfigError: a setting is not that of the adapter to go on from, or cannot be shared.
        TargetError, AdapterError: as the parts raise them.
    """
    first = configs[0]
    if first.full:
        if len(configs) > 1:
            raise ConfigError("full trains the base itself, so such a run cannot share it with others.")
        return [FullTrainee(base.model, base.tokenizer)]
    model: PeftModel | None = None
    trainees: list[AdapterTrainee] = []
    for number, config in enumerate(configs):
        name = f"run{number}" if number else "default"  # a run's own name may have dots in it
        torch.manual_seed(config.seed)
        lora = adapter_config(config, base.model if model is None else model.base_model.model)
        if model is None:
            model = get_peft_model(base.model, lora)
        else:
            model.add_adapter(name, lora)
        trainees.append(AdapterTrainee(model, name))
        if config.from_adapter is not None:
            trainees[-1].read(find_adapter(config.from_adapter, config.runs))
        elif config.init in ("kaiming", "gaussian"):
            soften_start(model.base_model, name)
        if len(configs) > 1 and trainees[-1].changes_base:
            raise ConfigError(
                f"init {config.init} changes the base, which runs that train together share; take another."
            )
    trainees[0].model.base_model.set_adapter([trainee.name for trainee in trainees])
    return list(trainees)
