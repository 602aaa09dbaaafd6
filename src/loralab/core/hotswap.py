"""Other values for an adapter in place, so that a compiled model runs on without compiling again."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from loralab.core.adapter import Adapter
from loralab.core.algebra import padded
from loralab.core.config import LoraConfig
from loralab.core.derived import with_scales
from loralab.core.layers import LoraLayer
from loralab.core.model import LoraModel
from loralab.errors import AdapterError, ConfigError

__all__ = ["hotswap", "prepare_for_hotswap"]

_SAME = ("use_dora", "lora_bias", "bias", "modules_to_save", "trainable_token_indices", "target_parameters")


def prepare_for_hotswap(model: nn.Module, target_rank: int | None = None) -> None:
    """Make room for adapters of other ranks and scales, before a model is compiled.

    Every factor is padded with zeros to `target_rank` (None leaves the ranks), which changes no output, and
    every scaling becomes a tensor: compiled code takes a number for a constant and compiles again when it
    changes.

    Raises:
        ConfigError: the model is compiled already, or a layer has a higher rank than `target_rank`.
    """
    if isinstance(model, torch._dynamo.OptimizedModule) or any(
        module._compiled_call_impl is not None for module in model.modules()
    ):
        raise ConfigError("the model is compiled already; prepare it for hotswapping before torch.compile.")
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    held = [(layer, name) for layer in layers for name in layer.adapters]
    if not held:
        raise ConfigError("the model has no adapter to make room for; attach one first.")
    for layer, name in held:
        layer.check_room(name, target_rank)
    for layer, name in held:
        layer.make_room(name, target_rank)
    for lora in _models(model):
        for name in lora.peft_config:
            lora.peft_config[name] = _config_of(lora, name)


def hotswap(model: LoraModel, name: str, adapter: Adapter) -> None:
    """Copy the values of `adapter` into the attached adapter `name`; every tensor keeps its place in memory.

    A lower rank is filled up with zeros. A module that `adapter` leaves alone gets B = 0.

    Raises:
        AdapterError: it has a tensor with no place in the attached one, a higher rank, or settings that would
            change what the model computes otherwise than by its numbers. Nothing has been changed.
    """
    if name not in model.peft_config:
        raise AdapterError(
            f"there is no adapter {name!r} to swap; loaded are {', '.join(model.peft_config)}."
        )
    if name in model.merged_adapters:
        raise AdapterError(f"adapter {name!r} is merged; call unmerge_adapter() before it is swapped.")
    _check_settings(model.peft_config[name], adapter.config)
    layers = {place: layer for place, layer in model.lora_layers.items() if name in layer.adapters}
    values = {place: _values(place, layer, name, adapter) for place, layer in layers.items()}
    known = {f"{place}.{key}" for place, layer in layers.items() for key in layer.tensors(name)}
    extra = [key for key in adapter.tensors if key not in known]
    if extra:
        raise AdapterError(
            f"{extra[0]} has no place in the attached adapter {name!r}, and {len(extra) - 1} more; attach "
            "one that adapts all the modules first."
        )
    for place, layer in layers.items():
        layer.scale_adapter(name, layer.path, adapter.config)
        if values[place]:
            layer.copy_values(name, values[place])
        else:
            layer.silence(name)
    model.peft_config[name] = _config_of(model, name)


def _check_settings(attached: LoraConfig, new: LoraConfig) -> None:
    for field in _SAME:
        values = [getattr(config, field) or None for config in (attached, new)]
        if values[0] != values[1]:
            raise AdapterError(
                f"{field} is {values[1]!r} in the new adapter and {values[0]!r} in the attached one; "
                "hotswapping changes numbers only."
            )


def _values(place: str, layer: LoraLayer, name: str, adapter: Adapter) -> Mapping[str, Tensor]:
    """Return the tensors for one layer, filled up to the shapes that it has; none if the adapter has none."""
    own = layer.tensors(name)
    given = {key: adapter.tensors[f"{place}.{key}"] for key in own if f"{place}.{key}" in adapter.tensors}
    missing = [key for key in own if key not in given]
    if given and missing:
        raise AdapterError(f"{place}.{missing[0]} is missing from the new adapter.")
    filled = {}
    for key, new in given.items():
        tensor = own[key]
        if new.dim() != tensor.dim() or any(n > t for n, t in zip(new.shape, tensor.shape, strict=True)):
            raise AdapterError(
                f"{place}.{key} is {list(new.shape)}, and the attached adapter has {list(tensor.shape)}; "
                "call prepare_model_for_compiled_hotswap(model, target_rank=...) with the highest rank first."
            )
        filled[key] = padded(new.to(tensor.device, tensor.dtype), tuple(tensor.shape))
    return filled


def _models(model: nn.Module) -> Iterator[LoraModel]:
    return (module for module in model.modules() if isinstance(module, LoraModel))


def _config_of(model: LoraModel, name: str) -> LoraConfig:
    """Return an adapter's config with the ranks and scales that its layers have now."""
    config = model.peft_config[name]
    layers = [layer for layer in model.lora_layers.values() if name in layer.adapters]
    scales = {}
    for layer in layers:
        rank = layer.r[name]
        scaling = float(layer.scaling[name])
        scales[layer.path] = (rank, scaling * (rank**0.5 if config.use_rslora else rank))
        layer.lora_alpha[name] = scales[layer.path][1]
    return with_scales(config, scales) if scales else config
