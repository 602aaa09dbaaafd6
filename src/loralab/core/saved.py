"""What is trained beside an adapter's factors: modules in full (`modules_to_save`)."""

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.layers.activation import Activation
from loralab.core.layers.switchable import Switchable

__all__ = ["AuxiliaryTrainingWrapper", "ModulesToSaveWrapper"]

_CHILDREN = ("modules_to_save", "token_adapter")


class AuxiliaryTrainingWrapper(Switchable):
    """A wrapper around a module of the base that is trained otherwise than by factors A and B."""

    @property
    @abstractmethod
    def shown(self) -> nn.Module:
        """The module that runs now."""

    def __getattr__(self, name: str) -> Any:
        """What the wrapper does not have itself, the module that runs answers: models read sizes there."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or name in ("_activation", "original_module", *_CHILDREN):
                raise
            return getattr(self.shown, name)

    @abstractmethod
    def delete_adapter(self, name: str) -> None:
        """Forget an adapter; one that is not there is no fault."""

    @abstractmethod
    def adapter_state_dict_load_map(self, adapter_name: str) -> dict[str, str]:
        """Return the names that an adapter's tensors have in this module, by their names in a file."""

    @abstractmethod
    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """Return an adapter's tensors by their names in a file; none if it does not train this module."""


class ModulesToSaveWrapper(AuxiliaryTrainingWrapper):
    """The original module and one full copy of it for each adapter that trains it."""

    def __init__(self, original_module: nn.Module, activation: Activation) -> None:
        super().__init__()
        self.original_module = original_module
        self.modules_to_save = nn.ModuleDict()
        self._activation = activation

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self.modules_to_save)

    def add_adapter(self, name: str, tied: nn.Module | None = None) -> None:
        """Copy the original module for an adapter, frozen; its weight is that of `tied`, if given."""
        self.modules_to_save[name] = copy.deepcopy(self.original_module).requires_grad_(False)
        if tied is not None:
            self.modules_to_save[name].weight = tied.weight

    def delete_adapter(self, name: str) -> None:
        if name in self.modules_to_save:
            del self.modules_to_save[name]

    def train_adapter(self, name: str, trains: bool) -> None:
        if name in self.modules_to_save:
            self.modules_to_save[name].requires_grad_(trains)

    def tensors(self, name: str) -> dict[str, Tensor]:
        return self.modules_to_save[name].state_dict() if name in self.modules_to_save else {}

    def adapter_state_dict_load_map(self, adapter_name: str) -> dict[str, str]:
        return {key: f"modules_to_save.{adapter_name}.{key}" for key in self.tensors(adapter_name)}

    @property
    def shown(self) -> nn.Module:
        return self.copy_of(self._activation.running)

    def copy_of(self, names: Sequence[str]) -> nn.Module:
        """Return the copy of the one of these adapters that has one, else the original module."""
        found = next((name for name in names if name in self.modules_to_save), None)
        return self.original_module if found is None else self.modules_to_save[found]

    @property
    def weight(self) -> Any:
        """The weight of the module that runs now, for models that read it (tied embeddings, heads)."""
        return self.shown.weight

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the active adapter's copy, or else the original module, returns.

        In a mixed batch each row is given to its adapter's copy, if it has one.
        """
        active = self._activation
        mixed = [name for name in dict.fromkeys(active.rows or ()) if name in self.modules_to_save]
        if not mixed or not active.enabled:
            return self.shown(*args, **kwargs)
        x, *rest = args
        output: Tensor = self.original_module(x, *rest, **kwargs)
        for name in mixed:
            index = torch.tensor(active.rows_of(name, x.shape[0]), device=x.device)
            own: Tensor = self.modules_to_save[name](x[index], *rest, **kwargs)
            output = output.index_copy(0, index, own.to(output.dtype))
        return output
