"""What scripts pass to models and files: accepted in each form that says the same, or refused in one line."""

import enum
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.config import LoraConfig
from loralab.errors import AdapterError, ConfigError, did_you_mean

__all__ = [
    "batch_size",
    "check_model",
    "check_rows",
    "check_save_keywords",
    "lora_config",
    "without_device_map",
]

_BY_ACCELERATE = ("auto", "balanced", "balanced_low_0", "sequential")
_ONE_FILE = {"max_shard_size", "save_function", "save_original_format"}
"""Keywords of transformers' `save_pretrained` that change nothing where one small file is written."""
_PLAIN = {"push_to_hub": False, "save_peft_format": True, "variant": None}
"""Others, with the one value that asks for what is done anyway."""
_UPLOAD = {"repo_id", "token", "commit_message", "private", "create_pr", "tags", "revision"}
_INPUTS = ("input_ids", "inputs_embeds", "inputs")


def check_model(model: object, where: str) -> None:
    """Raise ConfigError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{where}: the model is a {type(model).__name__}; expected a torch.nn.Module.")


def lora_config(config: Any, where: str) -> LoraConfig:
    """Return the config; one of the `peft` package's own class as a config of loralab's.

    Raises:
        ConfigError: it is no config, or of another method than LoRA.
        AdapterError: it asks for something that is not implemented.
    """
    if isinstance(config, LoraConfig):
        return config
    kind = type(config).__name__
    if not hasattr(config, "peft_type") or not hasattr(config, "to_dict"):
        hint = f" Try LoraConfig(**{config!r})." if isinstance(config, dict) else ""
        raise ConfigError(f"{where}: the config is a {kind}; expected a LoraConfig.{hint}")
    values = {
        name: value.value if isinstance(value, enum.Enum) else value
        for name, value in config.to_dict().items()
    }
    if values.get("peft_type") != "LORA":
        raise ConfigError(f"{where}: a {kind} is of another method; loralab makes LoRA adapters only.")
    return LoraConfig.from_dict(values, f"{where}: {kind}")


def check_place(model_id: object, where: str) -> None:
    """Raise ConfigError unless `model_id` can name a folder or a repository."""
    if not isinstance(model_id, str | os.PathLike) or not os.fspath(model_id):
        raise ConfigError(f"{where}: the adapter is {model_id!r}; expected a folder, or a hub id.")


def without_device_map(keywords: Mapping[str, Any], model: nn.Module, where: str) -> dict[str, Any]:
    """Return the keywords without a `device_map` that leaves every tensor on a device.

    An adapter goes where its base's layers are, so a map has nothing to decide, unless it offloads.

    Raises:
        ConfigError: the map names the disk or several devices, is none, or the base is offloaded itself.
    """
    rest = dict(keywords)
    given = rest.pop("device_map", None)
    if given is None:
        return rest
    devices = {str(device) for device in given.values()} if isinstance(given, Mapping) else {str(given)}
    base = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if "disk" in devices | base or ("cpu" in base and len(base) > 1):
        raise ConfigError(
            f"{where}: device_map={given!r} offloads, which is not supported; load the base onto devices."
        )
    if len(devices) > 1:
        raise ConfigError(
            f"{where}: device_map={given!r} names several devices; give it to the base, whose layers the "
            "adapter follows."
        )
    for device in devices - {*_BY_ACCELERATE}:
        _check_device(device, given, where)
    return rest


def _check_device(device: str, given: object, where: str) -> None:
    if device.isdecimal():
        return
    try:
        torch.device(device)
    except RuntimeError:
        near = did_you_mean(device, (*_BY_ACCELERATE, "cpu", "cuda"))
        raise ConfigError(f"{where}: device_map={given!r} names no device.{near}") from None


def check_save_keywords(keywords: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise ConfigError for a keyword of `save_pretrained` that asks for what is not done."""
    for name, value in keywords.items():
        if name in _ONE_FILE or value is None or (name in _PLAIN and value == _PLAIN[name]):
            continue
        hint = did_you_mean(name, known)
        if name == "push_to_hub" or name in _UPLOAD:
            hint = " To upload, call model.push_to_hub(repo_id)."
        raise ConfigError(f"save_pretrained: {name}={value!r} has no effect here.{hint}")


def check_rows(names: Any, rows: int | None) -> None:
    """Raise AdapterError unless `names` holds one adapter name for each row of a batch.

    `rows` is None where the inputs do not tell how many there are.
    """
    expected = "expected one name for each row of the batch, or '__base__'"
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise AdapterError(f"adapter_names is {names!r}; {expected}, as in [{names!r}].")
    if not names or (rows is not None and len(names) != rows):
        batch = "" if rows is None else f" for a batch of {rows} rows"
        raise AdapterError(f"adapter_names has {len(names)} entries{batch}; {expected}.")


def batch_size(args: Sequence[Any], keywords: Mapping[str, Any]) -> int | None:
    """Return the number of rows that a model gets: that of its input ids or embeddings, or first tensor."""
    named = [keywords.get(name) for name in _INPUTS]
    for value in (*named, *args, *keywords.values()):
        if isinstance(value, Tensor) and value.dim() > 0:
            return value.shape[0]
    return None
