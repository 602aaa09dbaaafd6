"""Stored adapters on their way into a model: where they lie, and in which form they arrive."""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loralab.adapters.arguments import check_place
from loralab.adapters.embeddings import set_embeddings, split_embeddings
from loralab.adapters.functional import PeftWarning, cast_layer
from loralab.adapters.moe_conversion import for_stacked_experts
from loralab.adapters.moe_factors import stack_factors
from loralab.adapters.peft_format import PICKLE_FILE, WEIGHTS_FILE, read_config, read_tensors
from loralab.adapters.state_dict import LoadResult, renamed, set_peft_model_state_dict
from loralab.adapters.wrapper import Wrapper
from loralab.core import targets
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.model import LoraModel
from loralab.core.peft_config import CONFIG_FILE
from loralab.errors import ConfigError
from loralab.hub import HubOptions, find_folder

__all__ = ["How", "Stored", "finish_loading", "keep_dtypes", "read_stored"]


@dataclass(frozen=True)
class How:
    """How a stored adapter is to be read and attached."""

    is_trainable: bool = False
    config: LoraConfig | None = None
    """Instead of the one in its folder."""
    autocast: bool = True
    """Hold tensors of 16 bits in 32; otherwise they stay as they are in the file."""
    key_mapping: Mapping[str, str] | None = None
    """Patterns of module paths in the file, and what they are in the model."""
    ignore_mismatched_sizes: bool = False
    allow_pickle: bool = False
    hub: HubOptions = field(default_factory=HubOptions)

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any], where: str, **own: Any) -> "How":
        """Return `own` and what a caller of `where` gave as further keywords.

        Raises:
            ConfigError: a keyword is unknown; it would do nothing.
        """
        rest = dict(keywords)
        if rest.pop("ephemeral_gpu_offload", False):
            raise ConfigError(f"{where}: ephemeral_gpu_offload would have no effect: nothing is initialised.")
        mine = {name: rest.pop(name) for name in ("ignore_mismatched_sizes", "allow_pickle") if name in rest}
        return cls(**own, **mine, hub=HubOptions.from_keywords(rest, where))


@dataclass(frozen=True)
class Stored:
    """An adapter as it was read for one model, and embeddings that came with it: (place, value)."""

    adapter: Adapter
    embeddings: list[tuple[torch.Tensor, torch.Tensor]]


def read_stored(model: nn.Module, model_id: str | Path, how: How) -> Stored:
    """Return the adapter in a folder or on the hub, ready for `model`, which is not changed.

    Raises:
        AdapterError: there is none, it cannot be read, or its embeddings have another size.
    """
    check_place(model_id, "loading an adapter")
    folder = find_folder(model_id, [CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE, "loralab.json"], how.hub)
    config = how.config or read_config(folder)
    config = dataclasses.replace(config, inference_mode=not how.is_trainable)
    config = for_stacked_experts(model, config)
    mapping = how.key_mapping
    if mapping is None:
        mapping = getattr(model, "_checkpoint_conversion_mapping", None)
    tensors = stack_factors(model, renamed(read_tensors(folder, allow_pickle=how.allow_pickle), mapping))
    own, embeddings = split_embeddings(model, config, tensors)
    return Stored(Adapter(config, own), embeddings)


def finish_loading(lora: LoraModel, name: str, stored: Stored, how: How) -> LoadResult:
    """Do for an adapter what is left when it is attached, and return what did not match.

    Only with `ignore_mismatched_sizes`, when the values are still to be set, may anything not match; then a
    warning says so too.
    """
    result = LoadResult()
    if how.ignore_mismatched_sizes:
        result = set_peft_model_state_dict(lora, stored.adapter.tensors, name, ignore_mismatched_sizes=True)
        for key, shape, wanted in result.mismatched_keys:
            text = (
                f"adapter {name!r}: {key} is {list(shape)}, the model needs {list(wanted)}; left as it was."
            )
            warnings.warn(text, PeftWarning, stacklevel=3)
    set_embeddings(stored.embeddings)
    if not how.autocast:
        keep_dtypes(lora, name, stored.adapter)
    return result


def is_training(model: Wrapper) -> bool:
    """Return whether a module is in training mode. Those of adapters follow their layers."""
    lora = model.base_model
    parts = (*lora.lora_layers.values(), *lora.wrappers.values())
    originals = (module for _, module in targets.walk(lora.model))
    return any(module.training for module in (model, lora, lora.model, *parts, *originals))


def keep_dtypes(lora: LoraModel, name: str, adapter: Adapter | None = None) -> None:
    """Give an adapter's tensors the dtype that they have in `adapter`; a new one's, that of the base."""
    for path, layer in lora.lora_layers.items():
        if name not in layer.adapters:
            continue
        dtype = layer.original_weight.dtype
        if adapter is not None:
            dtype = next(
                tensor for key, tensor in adapter.tensors.items() if key.startswith(f"{path}.")
            ).dtype
        if dtype.is_floating_point:
            cast_layer(layer, name, dtype)
