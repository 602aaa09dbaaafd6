"""The tensors of an adapter as a dictionary with PEFT's keys, out of a model and into it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loralab.adapters.embeddings import embedding_tensors, set_embeddings, split_embeddings
from loralab.adapters.functional import adapted, check_known
from loralab.adapters.moe_factors import stack_factors
from loralab.adapters.peft_format import PICKLE_FILE, PREFIX, WEIGHTS_FILE, own_keys, read_tensors
from loralab.core.layers.switchable import Switchable
from loralab.core.model import LoraModel
from loralab.errors import AdapterError
from loralab.hub import HubOptions, find_folder

__all__ = [
    "LoadResult",
    "get_base_model_state_dict",
    "get_peft_model_state_dict",
    "load_peft_weights",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
]

SaveEmbeddings = bool | Literal["auto"]


@dataclass(frozen=True)
class LoadResult:
    """What did not match when tensors were set. Names are those of the model's parameters."""

    missing_keys: list[str] = field(default_factory=list)
    """Tensors of the adapter that were not given, and stay as they were."""
    unexpected_keys: list[str] = field(default_factory=list)
    """Given tensors that have no place in the model."""
    mismatched_keys: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    """(name, given shape, shape in the model) of tensors that were passed over because it was asked for."""


def get_peft_model_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: SaveEmbeddings = "auto",
) -> dict[str, Tensor]:
    """Return the tensors of an adapter under the keys that they have in a file.

    From a `PeftModel` the keys start with ``base_model.model.``, from a model with injected adapters they
    do not. Values come from `state_dict`, the state of the whole model, where one is given: that of a
    sharded model has to be gathered first.

    Raises:
        AdapterError: there is no such adapter, or `state_dict` does not hold all of it.
    """
    if unwrap_compiled:
        model = getattr(model, "_orig_mod", model)
    lora = adapted(model)
    check_known(lora, adapter_name)
    tensors = dict(lora.adapter(adapter_name).tensors)
    if state_dict is not None:
        tensors = _from_state(model, lora, adapter_name, tensors, state_dict)
    tensors |= embedding_tensors(lora, adapter_name, save_embedding_layers)
    return {f"{_prefix(model, lora)}{key}": tensor.detach() for key, tensor in tensors.items()}


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
) -> LoadResult:
    """Copy tensors with a file's keys into an adapter of `model`, and return what did not match.

    Keys may carry ``base_model.model.`` or not. With `low_cpu_mem_usage` the adapter keeps their dtype.

    Raises:
        AdapterError: there is no such adapter, or a shape differs; nothing has been changed.
    """
    lora = adapted(model)
    check_known(lora, adapter_name)
    config = lora.peft_config[adapter_name]
    tensors = stack_factors(lora.model, own_keys(peft_model_state_dict))
    given, embeddings = split_embeddings(lora.model, config, tensors, whole=True)
    own = dict(lora.adapter(adapter_name).tensors)
    differing = [
        (key, tuple(given[key].shape), tuple(tensor.shape))
        for key, tensor in own.items()
        if key in given and given[key].shape != tensor.shape
    ]
    if differing and not ignore_mismatched_sizes:
        key, shape, wanted = differing[0]
        raise AdapterError(
            f"{len(differing)} tensors do not fit adapter {adapter_name!r}. {key} is {list(shape)}, the "
            f"model needs {list(wanted)}."
        )
    fitting = given.keys() & own.keys() - {key for key, _, _ in differing}
    with torch.no_grad():
        for key in fitting:
            if low_cpu_mem_usage and own[key].dtype != given[key].dtype:
                own[key].data = own[key].data.to(given[key].dtype)
            own[key].copy_(given[key])
    set_embeddings(embeddings)
    names = _names(model, lora, adapter_name)
    return LoadResult(
        missing_keys=[names[key] for key in own if key not in given],
        unexpected_keys=[key for key in given if key not in own],
        mismatched_keys=[(names[key], shape, wanted) for key, shape, wanted in differing],
    )


def load_peft_weights(
    model_id: str | Path,
    device: str | None = None,
    key_mapping: Mapping[str, str] | None = None,
    *,
    allow_pickle: bool = False,
    **hf_hub_download_kwargs: Any,
) -> dict[str, Tensor]:
    """Return the tensors of an adapter in a folder or on the hub, under the keys of the file.

    Raises:
        AdapterError: there is none, or it cannot be read.
        ConfigError: a keyword is unknown.
    """
    options = HubOptions.from_keywords(hf_hub_download_kwargs, "load_peft_weights")
    folder = find_folder(model_id, [WEIGHTS_FILE, PICKLE_FILE], options)
    tensors = renamed(read_tensors(folder, allow_pickle=allow_pickle), key_mapping)
    return {f"{PREFIX}{key}": tensor.to(device or "cpu") for key, tensor in tensors.items()}


def get_base_model_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the base model's state under its own keys, as if it had no adapters; merged ones are in it."""
    return dict(_base_tensors(adapted(model).model))


def set_base_model_state_dict(
    model: nn.Module, state_dict: Mapping[str, Tensor], strict: bool = True
) -> LoadResult:
    """Copy the state of a base model, under its own keys, into the base below the adapters.

    Raises:
        AdapterError: adapters are merged, a shape differs, or, with `strict`, keys do not match; nothing has
            been changed.
    """
    lora = adapted(model)
    if lora.merged_adapters:
        raise AdapterError("the base's weights are merged ones now; call unmerge_adapter() first.")
    own = dict(_base_tensors(lora.model))
    missing = [key for key in own if key not in state_dict]
    unexpected = [key for key in state_dict if key not in own]
    differing = [key for key in own if key in state_dict and own[key].shape != state_dict[key].shape]
    faults = [f"{key} is {list(state_dict[key].shape)}, not {list(own[key].shape)}" for key in differing]
    if strict:
        faults += [f"{key} is missing" for key in missing]
        faults += [f"{key} has no place in the model" for key in unexpected]
    if faults:
        raise AdapterError(f"{len(faults)} keys do not fit the base model: {faults[0]}.")
    with torch.no_grad():
        for key, tensor in own.items():
            if key in state_dict:
                tensor.copy_(state_dict[key])
    return LoadResult(missing, unexpected)


def renamed(tensors: Mapping[str, Tensor], mapping: Mapping[str, str] | None) -> dict[str, Tensor]:
    """Return the tensors with their module paths changed by the first pattern of `mapping` that matches."""
    if not mapping:
        return dict(tensors)

    def new(key: str) -> str:
        for pattern, replacement in mapping.items():
            # transformers writes these the other way round too: anchors and groups are no part of the result.
            plain = re.sub(r"\(.*\)", "", replacement.lstrip("^"))
            changed, count = re.subn(pattern, plain, key)
            if count:
                return changed
        return key

    return {new(key): tensor for key, tensor in tensors.items()}


def _prefix(model: nn.Module, lora: LoraModel) -> str:
    return "" if lora.model is model else PREFIX


def _names(model: nn.Module, lora: LoraModel, adapter: str) -> dict[str, str]:
    """Return the names that an adapter's tensors have in `model`, by their keys in a file."""
    prefix = _prefix(model, lora)
    names = {id(p): name for name, p in lora.model.named_parameters(remove_duplicate=False)}
    found = {}
    for key, tensor in lora.adapter(adapter).tensors.items():
        name = names.get(id(tensor))
        if name is None:
            name = _name_of_copy(lora, adapter, key)
        found[key] = f"{prefix}{name}"
    return found


def _name_of_copy(lora: LoraModel, adapter: str, key: str) -> str:
    """Return the name of a tensor of a module that is trained in full: those come out of a state dict."""
    for path, wrapper in lora.wrappers.items():
        own = key.removeprefix(f"{path}.")
        if own != key:
            return f"{path}.{wrapper.adapter_state_dict_load_map(adapter).get(own, own)}"
    return key


def _from_state(
    model: nn.Module,
    lora: LoraModel,
    adapter: str,
    tensors: Mapping[str, Tensor],
    state_dict: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    names = _names(model, lora, adapter)
    missing = [names[key] for key in tensors if names[key] not in state_dict]
    if missing:
        raise AdapterError(
            f"state_dict has no {missing[0]}, and {len(missing)} of {len(tensors)} tensors of adapter "
            f"{adapter!r} are missing. It has to be the state of the whole model."
        )
    return {key: state_dict[names[key]] for key in tensors}


def _base_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return (name, tensor) of what a base model's state holds, under the names it has without adapters."""
    found: list[tuple[str, Tensor]] = []
    state = model.state_dict(keep_vars=True)
    wrappers = {name: module for name, module in model.named_modules() if isinstance(module, Switchable)}
    for key, tensor in state.items():
        inside = [name for name in wrappers if key.startswith(f"{name}.")]
        path = key
        for name in sorted(inside, key=len, reverse=True):
            kind, _, rest = path.removeprefix(f"{name}.").partition(".")
            if kind not in ("base_layer", "original_module", "token_adapter"):
                break
            path = f"{name}.{rest}"
        else:
            found.append((path, tensor))
    return found
