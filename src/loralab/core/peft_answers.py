"""What PEFT's users ask a `LoraModel` by names of its own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loralab.core.layers.parameter import Layer as ParameterLayer
from loralab.core.layers.switchable import Switchable

if TYPE_CHECKING:
    from loralab.core.model import LoraModel

__all__ = [
    "delete_adapter",
    "set_requires_grad",
    "supports_lora_conversion",
    "targeted_module_names",
    "targeted_parameter_names",
]


def delete_adapter(model: "LoraModel", adapter_name: str) -> None:
    """Forget an adapter, as `detach` does. Raises AdapterError if there is none of that name."""
    model.detach(adapter_name)


def set_requires_grad(
    model: "LoraModel", adapter_names: str | Sequence[str], requires_grad: bool = True
) -> None:
    """Set whether adapters get gradients, active or not.

    Raises:
        AdapterError: there is no such adapter.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    for name in names:
        model.adapter(name)
    for module in model.modules():
        if isinstance(module, Switchable):
            module.set_requires_grad(names, requires_grad)


def supports_lora_conversion(model: "LoraModel", adapter_name: str = "default") -> bool:
    """Return True: every adapter is a LoRA already. Raises AdapterError if there is none of that name."""
    model.adapter(adapter_name)
    return True


def targeted_module_names(model: "LoraModel") -> list[str]:
    """Return the paths of the modules that some adapter changes."""
    return [x.path for x in model.lora_layers.values() if x.adapters and not isinstance(x, ParameterLayer)]


def targeted_parameter_names(model: "LoraModel") -> list[str]:
    """Return the paths of the parameters that some adapter changes and that are no layer's own."""
    layers = [x for x in model.lora_layers.values() if x.adapters and isinstance(x, ParameterLayer)]
    return [layer.path for layer in layers]
