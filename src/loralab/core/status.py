"""What state a model's adapters are in, layer by layer and in all."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from loralab.core.layers import LoraLayer
from loralab.core.model import LoraModel

__all__ = ["LayerStatus", "ModelStatus", "layer_status", "model_status"]

Irregular = Literal["irregular"]
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class LayerStatus:
    """The state of one adapted layer. Field names are PEFT's."""

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | Irregular]
    """By adapter: whether its tensors get gradients; "irregular" when some do and some do not."""
    available_adapters: list[str]
    devices: dict[str, list[str]] = field(default_factory=dict)
    """By adapter: the devices that its tensors lie on."""


@dataclass(frozen=True)
class ModelStatus:
    """The state of a model. Field names are PEFT's; "irregular" is where layers differ."""

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool | Irregular
    active_adapters: list[str] | Irregular
    merged_adapters: list[str] | Irregular
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]


def layer_status(model: LoraModel) -> list[LayerStatus]:
    """Return the status of every adapted layer, in the model's order."""
    return [_one(path, layer) for path, layer in model.lora_layers.items()]


def model_status(model: LoraModel) -> ModelStatus:
    """Return the status of the model as a whole."""
    layers = layer_status(model)
    names = sorted(model.peft_config)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return ModelStatus(
        base_model_type=type(model.model).__name__,
        adapter_model_type=type(model).__name__,
        peft_types=dict.fromkeys(names, "LORA"),
        trainable_params=sum(size for size, trains in sizes if trains),
        total_params=sum(size for size, _ in sizes),
        num_adapter_layers=len(layers),
        enabled=_same([layer.enabled for layer in layers], True),
        active_adapters=_same([layer.active_adapters for layer in layers], []),
        merged_adapters=_same([layer.merged_adapters for layer in layers], []),
        requires_grad={
            name: _same([s.requires_grad[name] for s in layers if name in s.requires_grad], False)
            for name in names
        },
        available_adapters=names,
        devices={
            name: sorted({d for layer in layers for d in layer.devices.get(name, ())}) for name in names
        },
    )


def _one(path: str, layer: LoraLayer) -> LayerStatus:
    names = sorted(layer.adapters)
    trains = {name: [t.requires_grad for t in layer.tensors(name).values()] for name in names}
    return LayerStatus(
        name=f"model.{path}",
        module_type=f"lora.{type(layer.base_layer).__name__}",
        enabled=not layer.disable_adapters,
        active_adapters=layer.active_adapters,
        merged_adapters=layer.merged_adapters,
        requires_grad={name: _same(flags, False) for name, flags in trains.items()},
        available_adapters=names,
        devices={name: sorted({str(t.device.type) for t in layer.tensors(name).values()}) for name in names},
    )


def _same(values: Sequence[_Value], empty: _Value) -> _Value | Irregular:
    """Return the value that all layers share, or "irregular"."""
    if not values:
        return empty
    return values[0] if all(value == values[0] for value in values) else "irregular"
