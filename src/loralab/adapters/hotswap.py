"""Hotswapping in PEFT's words: another adapter in place, so that a compiled model runs on as it is."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loralab.adapters.functional import PeftWarning, adapted, lora_model_of
from loralab.adapters.loading import How, read_stored
from loralab.adapters.peft_format import own_keys
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.hotswap import hotswap, prepare_for_hotswap
from loralab.errors import ConfigError

__all__ = [
    "check_hotswap_configs_compatible",
    "hotswap_adapter",
    "hotswap_adapter_from_state_dict",
    "prepare_model_for_compiled_hotswap",
]

_NOT_HOT = (
    "use_dora",
    "lora_bias",
    "bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
)


def hotswap_adapter(
    model: nn.Module,
    model_name_or_path: str | Path,
    adapter_name: str,
    torch_device: str | None = None,
    **kwargs: Any,
) -> None:
    """Put a stored adapter's values into the attached adapter `adapter_name`, and keep its tensors in place.

    Keywords are those of `PeftModel.load_adapter`.

    Raises:
        AdapterError: it cannot be read, or does not fit; nothing has been changed.
        ConfigError: a keyword would do nothing.
    """
    lora = adapted(_compiled_from(model))
    how = How.from_keywords(kwargs, "hotswap_adapter", is_trainable=True)
    hotswap(lora, adapter_name, read_stored(lora.model, model_name_or_path, how).adapter)


def hotswap_adapter_from_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    adapter_name: str,
    config: LoraConfig,
    parameter_prefix: str = "lora_",
) -> None:
    """Put the tensors of a state dict into the adapter `adapter_name`; raises as `hotswap_adapter`."""
    lora = adapted(_compiled_from(model))
    hotswap(lora, adapter_name, Adapter(config, own_keys(state_dict)))


def prepare_model_for_compiled_hotswap(
    model: nn.Module,
    *,
    target_rank: int | None = None,
    config: LoraConfig | Mapping[str, LoraConfig] | None = None,
    check_compiled: Literal["error", "warn", "ignore"] = "error",
) -> None:
    """Make room for adapters of other ranks and scales. The configs are brought up to date by themselves.

    Raises:
        ConfigError: the model has no adapter, a higher rank than `target_rank`, or is compiled already.
    """
    if check_compiled not in ("error", "warn", "ignore"):
        raise ConfigError(f"check_compiled is {check_compiled!r}; expected 'error', 'warn' or 'ignore'.")
    if isinstance(model, torch._dynamo.OptimizedModule) and check_compiled != "error":
        if check_compiled == "warn":
            text = "the model is compiled already; it will be compiled again when it runs."
            warnings.warn(text, PeftWarning, stacklevel=2)
        model = _compiled_from(model)
    prepare_for_hotswap(lora_model_of(model) or model, target_rank)


def check_hotswap_configs_compatible(config0: LoraConfig, config1: LoraConfig) -> None:
    """Raise ConfigError unless an adapter of one config can take the place of one of the other."""
    for name in _NOT_HOT:
        one, two = getattr(config0, name), getattr(config1, name)
        if (one or None) != (two or None):
            raise ConfigError(f"{name} is {one!r} and {two!r}; hotswapping changes numbers only.")


def _compiled_from(model: nn.Module) -> nn.Module:
    original: nn.Module = getattr(model, "_orig_mod", model)
    return original
