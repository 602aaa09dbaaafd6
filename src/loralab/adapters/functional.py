"""Adapters in a model that stays what it is: no `PeftModel` around it. PEFT's functional interface.

transformers and diffusers adapt models this way: the layers are in the model, and whoever switches them walks
over its modules. Tensor names are those of a file without ``base_model.model.``.
"""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from loralab.adapters.arguments import check_model, lora_config
from loralab.adapters.moe_conversion import for_stacked_experts
from loralab.adapters.peft_format import own_keys
from loralab.core import targets
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.derived import explicit_targets
from loralab.core.layers import LoraLayer, wrap
from loralab.core.layers.activation import Activation
from loralab.core.layers.switchable import Switchable
from loralab.core.model import LoraModel
from loralab.core.status import LayerStatus, ModelStatus, layer_status, model_status
from loralab.errors import AdapterError, ConfigError, did_you_mean

__all__ = [
    "PeftWarning",
    "cast_adapter_dtype",
    "delete_adapter",
    "get_layer_status",
    "get_model_status",
    "inject_adapter_in_model",
    "lora_model_of",
    "set_adapter",
    "set_requires_grad",
]

_MORE = ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication")
_PLACE = "_lora_model"
"""Where an adapted model keeps its `LoraModel`: among its attributes, not its modules, for it is inside."""


class PeftWarning(UserWarning):
    """A warning that PEFT's users may filter by its class."""


def inject_adapter_in_model(
    peft_config: LoraConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Put a new adapter into `model` and return it, the same object. The adapter is made active.

    With `state_dict` the modules that its keys name are adapted; its values are not used. With
    `low_cpu_mem_usage` no random numbers are drawn: the adapter is zero until its tensors are set.

    Raises:
        ConfigError: the name is taken, or the model is a `PeftModel` or inside one.
        TargetError: the targets match nothing.
    """
    check_model(model, "inject_adapter_in_model")
    peft_config = lora_config(peft_config, "inject_adapter_in_model")
    if isinstance(model._modules.get("base_model"), LoraModel) or isinstance(model, LoraModel):
        raise ConfigError("inject_adapter_in_model takes a bare model; use model.add_adapter(name, config).")
    if state_dict is not None:
        paths = {key.partition(".lora_")[0] for key in own_keys(state_dict) if ".lora_" in key}
        peft_config = dataclasses.replace(peft_config, **explicit_targets(paths))  # type: ignore[arg-type]
    else:
        peft_config = for_stacked_experts(model, peft_config)
    adapter = _zeros(model, peft_config) if low_cpu_mem_usage else None
    lora: LoraModel | None = model.__dict__.get(_PLACE)
    # Others take layers and `peft_config` out of the model by themselves.
    if lora is None or model.__dict__.get("peft_config", {}) != lora.peft_config:
        check_bare(model)
        lora = LoraModel(model, peft_config, adapter_name, adapter)
        model.__dict__[_PLACE] = lora
    else:
        lora.attach(adapter_name, peft_config, adapter)
        lora.set_adapter(adapter_name, peft_config.inference_mode)
    model.peft_config = lora.peft_config  # type: ignore[assignment]
    return model


def lora_model_of(model: nn.Module) -> LoraModel | None:
    """Return the `LoraModel` in a `PeftModel`, or that of a model with injected adapters; None if neither."""
    inside = model._modules.get("base_model")
    if isinstance(inside, LoraModel):
        return inside
    if isinstance(model, LoraModel):
        return model
    lora = model.__dict__.get(_PLACE)
    return lora if lora is not None and model.__dict__.get("peft_config") is lora.peft_config else None


def adapted(model: nn.Module) -> LoraModel:
    """Return `lora_model_of(model)`. Raises AdapterError if it has no adapters."""
    lora = lora_model_of(model)
    if lora is None:
        raise AdapterError(f"this {type(model).__name__} has no adapters; get_peft_model adds one.")
    return lora


def run_another(lora: LoraModel, deleted: str) -> None:
    """Make the first adapter that is left run if none does, and warn of it, as PEFT does."""
    left = next(iter(lora.peft_config), None)
    if left is not None and not lora.active_adapters:
        lora.set_adapter(left, lora.peft_config[left].inference_mode)
        warnings.warn(f"adapter {deleted!r} is deleted; {left!r} runs now.", PeftWarning, stacklevel=3)


def check_known(lora: LoraModel, name: str) -> None:
    """Raise AdapterError unless there is an adapter of that name."""
    if name not in lora.peft_config:
        raise AdapterError(
            f"there is no adapter {name!r}; loaded are {', '.join(lora.peft_config) or 'none'}."
            + did_you_mean(name, lora.peft_config)
        )


def check_bare(model: nn.Module) -> None:
    """Raise ConfigError if `model` has adapted layers, which a second wrapping would lose sight of."""
    check_model(model, "an adapted model")
    if any(isinstance(module, Switchable) for module in model.modules()):
        raise ConfigError(
            "the model has adapters already; use add_adapter on it, or unload() for the base as it was."
        )


def set_adapter(
    model: nn.Module,
    adapter_name: str | Sequence[str],
    inference_mode: bool = False,
    layer_cls: type = LoraLayer,
) -> None:
    """Make these adapters, and no others, run; they alone are trainable, unless told otherwise.

    Raises:
        AdapterError: there is no such adapter.
    """
    adapted(model).set_adapter(adapter_name, inference_mode)


def delete_adapter(
    model: nn.Module, adapter_name: str, prefix: str = LoraModel.prefix, layer_cls: type = LoraLayer
) -> list[str] | None:
    """Forget an adapter and return the names of those that run now, None if none does.

    Raises:
        AdapterError: there is no such adapter.
    """
    lora = adapted(model)
    lora.detach(adapter_name)
    run_another(lora, adapter_name)
    return lora.active_adapters or None


def set_requires_grad(
    model: nn.Module, adapter_names: str | Sequence[str], requires_grad: bool = True
) -> None:
    """Set whether adapters get gradients, active or not.

    Raises:
        AdapterError: there is no such adapter.
    """
    adapted(model).set_requires_grad(adapter_names, requires_grad)


def cast_adapter_dtype(model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
    """Give an adapter's tensors 32 bits; without `autocast_adapter_dtype`, do nothing."""
    if autocast_adapter_dtype:
        for layer in adapted(model).lora_layers.values():
            cast_layer(layer, adapter_name, torch.float32)


def cast_layer(layer: LoraLayer, name: str, dtype: torch.dtype) -> None:
    """Give an adapter's tensors in one layer another dtype. They stay the same objects for an optimizer."""
    if name in layer.adapters:
        for tensor in layer.tensors(name).values():
            tensor.data = tensor.data.to(dtype)


def get_layer_status(model: nn.Module) -> list[LayerStatus]:
    """Return the status of every adapted layer, in the model's order.

    Raises:
        AdapterError: the model has no adapters.
    """
    lora = adapted(model)
    layers = layer_status(lora)
    if lora.model is not model:
        return layers
    return [dataclasses.replace(layer, name=layer.name.removeprefix("model.")) for layer in layers]


def get_model_status(model: nn.Module) -> ModelStatus:
    """Return the status of the model as a whole.

    Raises:
        AdapterError: the model has no adapters.
    """
    lora = adapted(model)
    status = model_status(lora)
    if lora.model is not model:
        return status
    return dataclasses.replace(status, adapter_model_type="None", peft_types={})


def _zeros(model: nn.Module, config: LoraConfig) -> Adapter | None:
    """Return an adapter of zeros that fits the model; memory is not touched until its values are set.

    None if the config asks for more than factors: copies of modules have the values of the base.
    """
    if config.bias != "none" or any(getattr(config, name) for name in _MORE) or config.heads:
        return None
    modules = dict(targets.walk(model))
    tensors: dict[str, Tensor] = {}
    for path in targets.find_targets(model, config).paths:
        layer = wrap(modules[path], path, Activation())
        for key, shape in layer.expected(path, config).items():
            tensors[f"{path}.{key}"] = torch.zeros(shape)
    return Adapter(config, tensors)
