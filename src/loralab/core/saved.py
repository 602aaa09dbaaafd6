"""A module that is trained in full beside an adapter (`modules_to_save`)."""

import copy
from typing import Any

from torch import Tensor, nn

from loralab.core.layers.base import Activation

__all__ = ["ModulesToSaveWrapper"]


class ModulesToSaveWrapper(nn.Module):
    """The original module and one full copy of it for each adapter that trains it."""

    def __init__(self, original_module: nn.Module, activation: Activation) -> None:
        super().__init__()
        self.original_module = original_module
        self.modules_to_save = nn.ModuleDict()
        self._activation = activation

    def add_adapter(self, name: str, trains: bool) -> None:
        """Copy the original module for an adapter."""
        self.modules_to_save[name] = copy.deepcopy(self.original_module).requires_grad_(trains)

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter's copy; one that is not there is no fault."""
        if name in self.modules_to_save:
            del self.modules_to_save[name]

    def train_adapter(self, name: str, trains: bool) -> None:
        """Set whether an adapter's copy gets gradients."""
        if name in self.modules_to_save:
            self.modules_to_save[name].requires_grad_(trains)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the copy's parameters and buffers under their own names; none if the adapter has no copy."""
        return self.modules_to_save[name].state_dict() if name in self.modules_to_save else {}

    @property
    def shown(self) -> nn.Module:
        """The module that runs now."""
        if self._activation.enabled and self._activation.rows is None:
            for name in self._activation.names:
                if name in self.modules_to_save:
                    return self.modules_to_save[name]
        return self.original_module

    @property
    def weight(self) -> Any:
        """The weight of the module that runs now, for models that read it (tied embeddings, heads)."""
        return self.shown.weight

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the active adapter's copy, or else the original module, returns."""
        return self.shown(*args, **kwargs)
