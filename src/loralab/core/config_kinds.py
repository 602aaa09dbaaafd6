"""Whether the values of a `LoraConfig` are of the right kinds: a file may hold anything."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loralab.core.config import LoraConfig

__all__ = ["as_set", "unreadable", "wrong_kinds"]

_FLAGS = ("fan_in_fan_out", "use_rslora", "use_dora", "lora_bias", "ensure_weight_tying", "inference_mode")
_TEXTS = ("task_type", "base_model_name_or_path", "revision")


def as_set(names: Any) -> Any:
    """Return a list of names as a set, and anything else as it is."""
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return set(names)
    return names


def unreadable(config: "LoraConfig") -> list[str]:
    """Return what is of a kind that nothing else about the config can be told of."""
    faults = []
    for name in ("rank_pattern", "alpha_pattern"):
        value = getattr(config, name)
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            faults.append(f"{name} is {value!r}; expected an object of module names and numbers")
    for name in _FLAGS:
        if getattr(config, name) not in (None, True, False):
            faults.append(f"{name} is {getattr(config, name)!r}; expected true or false")
    for name in _TEXTS:
        value = getattr(config, name)
        if not (value is None or isinstance(value, str | os.PathLike)):
            faults.append(f"{name} is {value!r}; expected a text")
    pattern = config.layers_pattern
    texts = pattern if isinstance(pattern, list | tuple | set) else [pattern]
    if pattern is not None and not all(isinstance(text, str) for text in texts):
        faults.append(f"layers_pattern is {pattern!r}; expected a name or a list of names")
    if not hasattr(config.runtime_config, "ephemeral_gpu_offload"):
        faults.append(f"runtime_config is {config.runtime_config!r}; it belongs to one process, not a file")
    return faults


def wrong_kinds(config: "LoraConfig") -> list[str]:
    """Return what is wrong with fields that hold names or numbers of layers."""
    faults = []
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        value = getattr(config, name)
        names = isinstance(value, list | tuple | set) and all(isinstance(item, str) for item in value)
        pattern = isinstance(value, str) and name != "modules_to_save"
        if not (value is None or names or pattern):
            faults.append(f"{name} is {value!r}; expected a list of module names")
    parameters = config.target_parameters
    if parameters is not None and not (
        isinstance(parameters, list | tuple | set) and all(isinstance(item, str) for item in parameters)
    ):
        faults.append(f"target_parameters is {parameters!r}; expected a list of parameter names")
    ranges = config.layer_replication or []
    if not isinstance(ranges, list | tuple) or not all(
        isinstance(item, list | tuple)
        and len(item) == 2
        and all(type(n) is int for n in item)
        and 0 <= item[0] < item[1]
        for item in ranges
    ):
        faults.append(f"layer_replication is {ranges!r}; expected pairs [first, past the last]")
    tokens = config.trainable_token_indices or []
    if not isinstance(tokens, list | dict):
        faults.append(
            f"trainable_token_indices is {tokens!r}; expected token ids, or such a list by module name"
        )
    layers = config.layers_to_transform
    indices = layers if isinstance(layers, list) else [layers]
    if layers is not None and not all(type(index) is int for index in indices):
        faults.append(f"layers_to_transform is {layers!r}; expected a layer's number or a list of them")
    return faults
