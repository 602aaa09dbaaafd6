"""What runs and what trains, asked and said at one module of a model, in PEFT's words."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn

from loralab.core.layers.activation import Activation

__all__ = ["Switchable"]


class Switchable(nn.Module, ABC):
    """A module with named adapters that runs those which the model's `Activation` names.

    transformers and diffusers switch adapters module by module. All modules of a model share one
    `Activation`, so the first of them has switched the whole model, and the others change nothing more.
    """

    _activation: Activation

    @property
    @abstractmethod
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that this module holds."""

    @abstractmethod
    def train_adapter(self, name: str, trains: bool) -> None:
        """Set whether the tensors of an adapter get gradients; one that is not here is no fault."""

    @property
    def active_adapters(self) -> list[str]:
        """The names of the model's active adapters."""
        return list(self._activation.names)

    @property
    def active_adapter(self) -> str | list[str]:
        """The name of the model's active adapter, or a list unless there is one."""
        return self._activation.active

    @property
    def _active_adapter(self) -> str | list[str]:
        return self.active_adapter

    @property
    def disable_adapters(self) -> bool:
        """Whether adapters are switched off."""
        return not self._activation.enabled

    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make the whole model run these adapters; here they alone are trainable, unless told otherwise."""
        names = (adapter_names,) if isinstance(adapter_names, str) else tuple(adapter_names)
        self._activation.names = names
        for name in self.adapters:
            self.train_adapter(name, name in names and not inference_mode)
        self.follow()

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the whole model's adapters on or off. What trains stays as it is."""
        self._activation.enabled = enabled
        self.follow()

    def follow(self) -> None:
        """Put in place what goes with the adapters that run now, as `Activation` says; here, nothing."""

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Set whether adapters get gradients here, active or not."""
        for name in (adapter_names,) if isinstance(adapter_names, str) else adapter_names:
            self.train_adapter(name, requires_grad)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: what is here is a LoRA already."""
        return True

    def _all_available_adapter_names(self) -> list[str]:
        """Return `adapters`, under PEFT's name."""
        return sorted(self.adapters)

    def _get_available_adapters(self) -> set[str]:
        """Return `adapters`, under PEFT's name."""
        return set(self.adapters)
