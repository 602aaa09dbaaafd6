"""What state a model's adapters are in, layer by layer and in all."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from torch import Tensor

from loralab.core.layers import LoraLayer
from loralab.core.layers.mergeable import Mergeable
from loralab.core.layers.switchable import Switchable
from loralab.core.model import LoraModel
from loralab.core.saved import ModulesToSaveWrapper
from loralab.core.tokens import TrainableTokensLayer, TrainableTokensWrapper

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
    quantization_backend: str | None = None
    """Which library keeps the base's weight in a few bits, if one does."""


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
    quantization_backend: str | None


def layer_status(model: LoraModel) -> list[LayerStatus]:
    """Return the status of every adapted layer, then of what is trained otherwise than by factors."""
    layers = [_one(f"model.{path}", layer) for path, layer in model.lora_layers.items()]
    for path, wrapper in model.wrappers.items():
        if isinstance(wrapper, TrainableTokensWrapper):
            layers.append(_one(f"model.{path}.token_adapter", wrapper.token_adapter))
        else:
            layers.append(_one(f"model.{path}", wrapper))
    return layers


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
        merged_adapters=_merged(layers),
        requires_grad={
            name: _same([s.requires_grad[name] for s in layers if name in s.requires_grad], False)
            for name in names
        },
        available_adapters=names,
        devices={
            name: sorted({d for layer in layers for d in layer.devices.get(name, ())}) for name in names
        },
        quantization_backend=_same([layer.quantization_backend for layer in layers], None),
    )


def _one(path: str, module: Switchable) -> LayerStatus:
    tensors = {name: _parameters(module, name) for name in sorted(module.adapters)}
    backend = getattr(module, "quantization_backend", None)
    return LayerStatus(
        name=path,
        module_type=f"lora.{module.peft_name}" if isinstance(module, LoraLayer) else type(module).__name__,
        enabled=not module.disable_adapters,
        active_adapters=module.active_adapters,
        merged_adapters=list(module.merged_adapters) if isinstance(module, Mergeable) else [],
        requires_grad={name: _same([p.requires_grad for p in own], False) for name, own in tensors.items()},
        available_adapters=list(tensors),
        devices={name: sorted({p.device.type for p in own}) for name, own in tensors.items()},
        quantization_backend=None if backend is None else backend.backend_name,
    )


def _parameters(module: Switchable, name: str) -> list[Tensor]:
    if isinstance(module, LoraLayer):
        return list(module.tensors(name).values())
    if isinstance(module, TrainableTokensLayer):
        return [module.rows(name)]
    if isinstance(module, ModulesToSaveWrapper):
        return list(module.modules_to_save[name].parameters())
    return []


def _merged(layers: Sequence[LayerStatus]) -> list[str] | Irregular:
    """Return the names that are merged wherever they can be, or "irregular"."""
    merged = {name for layer in layers for name in layer.merged_adapters}
    for layer in layers:
        can = layer.module_type != ModulesToSaveWrapper.__name__
        if can and merged & set(layer.available_adapters) - set(layer.merged_adapters):
            return "irregular"
    return sorted(merged)


def _same(values: Sequence[_Value], empty: _Value) -> _Value | Irregular:
    """Return the value that all layers share, or "irregular"."""
    if not values:
        return empty
    return values[0] if all(value == values[0] for value in values) else "irregular"
