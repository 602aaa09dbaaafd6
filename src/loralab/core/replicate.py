"""Layers of the base stacked anew, their weights shared (`layer_replication`)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from loralab.errors import ConfigError, TargetError

__all__ = ["Replication", "replicate"]


@dataclass(frozen=True)
class Replication:
    """A stack of layers that took the place of the base's own, and what it takes to go back."""

    ranges: tuple[tuple[int, int], ...]
    parent: nn.Module
    name: str
    original: nn.Module
    config: object
    told: Mapping[str, Any]
    """What `config` said of the base's own stack."""

    def undo(self) -> None:
        """Put the base's own stack back."""
        setattr(self.parent, self.name, self.original)
        for key, value in self.told.items():
            setattr(self.config, key, value)

    def settle(self) -> None:
        """Give every copy tensors of its own: a model that is saved must hold each of its layers."""
        seen: set[int] = set()
        for layer in getattr(self.parent, self.name):
            tensors = (*layer.parameters(), *layer.buffers())
            memo = {id(tensor): tensor for tensor in tensors if id(tensor) not in seen}
            for module in layer.modules():
                for table in (module._parameters, module._buffers):
                    for key, tensor in table.items():
                        table[key] = copy.deepcopy(tensor, memo)
            seen.update(id(tensor) for tensor in tensors)


def replicate(model: nn.Module, ranges: Sequence[Sequence[int]]) -> Replication:
    """Replace the stack of decoder or encoder layers by the layers of `ranges`, [first, past the last] each.

    Copies share all parameters and buffers with their originals; only the modules are new, so that each can
    have an adapter of its own.

    Raises:
        TargetError: the model has no stack of layers that can be told.
        ConfigError: a range leaves the stack.
    """
    parent, name, stack = _find_stack(model)
    pairs = tuple((first, end) for first, end in ranges)
    for first, end in pairs:
        if end > len(stack):
            raise ConfigError(f"layer_replication: [{first}, {end}] leaves the stack of {len(stack)} layers.")
    layers = [_shared_copy(stack[index]) for first, end in pairs for index in range(first, end)]
    for position, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = position  # type: ignore[assignment]
    setattr(parent, name, nn.ModuleList(layers))
    config = getattr(model, "config", None)
    return Replication(pairs, parent, name, stack, config, _tell(config, pairs))


def _find_stack(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    inner = model
    while isinstance(getattr(inner, "model", None), nn.Module):
        inner = inner.model  # type: ignore[assignment]
    inner = getattr(inner, "bert", inner)
    encoder = getattr(inner, "encoder", None)
    for parent, name in ((inner, "layers"), (encoder, "layer"), (inner, "h")):
        stack = getattr(parent, name, None)
        if isinstance(parent, nn.Module) and isinstance(stack, nn.ModuleList):
            return parent, name, stack
    raise TargetError(
        "layer_replication: expected a stack of layers called 'layers', 'encoder.layer' or 'h'."
    )


def _shared_copy(layer: nn.Module) -> nn.Module:
    shared = {id(tensor): tensor for tensor in (*layer.parameters(), *layer.buffers())}
    return copy.deepcopy(layer, shared)


def _tell(config: object, ranges: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Let a model's config say how many layers there are, and which kind each is of; return what it said."""
    count = getattr(config, "num_hidden_layers", None)
    if count is None:
        return {}
    told: dict[str, Any] = {"num_hidden_layers": count}
    for key, kinds in vars(config).items():
        if key.endswith("layer_types") and isinstance(kinds, list) and len(kinds) == count:
            told[key] = kinds
    stacked = [index for first, end in ranges for index in range(first, end)]
    for key, said in told.items():
        setattr(config, key, len(stacked) if key == "num_hidden_layers" else [said[i] for i in stacked])
    return told
