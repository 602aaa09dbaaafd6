"""LoRA layers, one file for each kind of base layer; the folder is the registry.

An entry has ``matches(module)``, which says whether it can wrap a module, ``LINEAR``, which says whether the
target presets count such a module among the linear layers, and one final class ``Layer(LoraLayer)``.
"""

from torch import nn

from loralab.core.layers.activation import BASE, Activation
from loralab.core.layers.base import LoraLayer
from loralab.core.registry import Registry
from loralab.errors import TargetError

__all__ = ["BASE", "REGISTRY", "Activation", "LoraLayer", "is_linear", "supports", "wrap"]

_MECHANICS = (
    "activation",
    "base",
    "effective",
    "holding",
    "mergeable",
    "parameter",
    "quantized",
    "scaled",
    "switchable",
    "together",
)
REGISTRY = Registry(__name__, list(__path__), "layer kind", besides=_MECHANICS)
_ENTRIES = [REGISTRY.get(name) for name in REGISTRY.names]


def is_linear(module: nn.Module) -> bool:
    """Return whether the target presets count `module` among the linear layers."""
    return any(entry.LINEAR and entry.matches(module) for entry in _ENTRIES)


def supports(module: nn.Module) -> bool:
    """Return whether `module` can be adapted, or is adapted already."""
    return isinstance(module, LoraLayer) or any(entry.matches(module) for entry in _ENTRIES)


def wrap(module: nn.Module, path: str, activation: Activation) -> LoraLayer:
    """Return the LoRA layer around `module`, with no adapter yet.

    Raises:
        TargetError: no entry can wrap this module.
    """
    for entry in _ENTRIES:
        if entry.matches(module):
            layer: LoraLayer = entry.Layer(module, activation)
            layer.path = path
            return layer
    raise TargetError(
        f"module {path!r} is a {type(module).__name__}, which cannot be adapted; "
        f"there are layers for {', '.join(REGISTRY.names)}."
    )
