"""Embeddings of the base that travel with an adapter, because the base has others or none of that size."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn

from loralab.core import targets
from loralab.core.config import LoraConfig
from loralab.core.layers import LoraLayer
from loralab.core.model import LoraModel
from loralab.core.saved import ModulesToSaveWrapper
from loralab.errors import AdapterError, ConfigError

__all__ = ["embedding_tensors", "set_embeddings", "split_embeddings"]


def embedding_tensors(lora: LoraModel, name: str, save: bool | Literal["auto"]) -> dict[str, Tensor]:
    """Return the weights of the base's input and output embeddings, under their keys in an adapter's file.

    "auto" returns them if the base has another vocabulary than the files that it came from; if those cannot
    be looked at here, if the adapter targets them. The network is never asked.

    Raises:
        ConfigError: `save` is True, and the model has no embeddings to find.
    """
    config = lora.peft_config[name]
    places = _places(lora.model, config)
    targeted = [path for path in places if path in lora.lora_layers]
    if save is True and not places:
        raise ConfigError(
            f"save_embedding_layers=True: a {type(lora.model).__name__} has no get_input_embeddings to find "
            "them by; leave it at 'auto'."
        )
    resized = None if save is False else _resized(lora.model, config)
    unknown = resized is None and bool(targeted) and not config.trainable_token_indices
    if not save or (save == "auto" and not resized and not unknown):
        return {}
    # PEFT leaves an untargeted head behind even where it was resized.
    chosen = targeted if targeted and not resized else list(places)
    inside = {path: ".base_layer" if path in targeted else "" for path in chosen}
    return {f"{path}{inside[path]}.weight": places[path] for path in chosen}


def split_embeddings(
    model: nn.Module, config: LoraConfig, tensors: Mapping[str, Tensor], *, whole: bool = False
) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """Return an adapter's tensors without the base's embeddings among them, and (place, value) of those.

    Embeddings below factors are the base's; those without, only if `whole` says so.

    Raises:
        AdapterError: an embedding is of another size than the base's.
    """
    if all(".lora_" in key for key in tensors):
        return dict(tensors), []
    pairs = []
    taken = set()
    for path, place in _places(model, config).items():
        for key in (f"{path}.weight", f"{path}.base_layer.weight"):
            if key not in tensors:
                continue
            value = tensors[key]
            if value.shape != place.shape:
                raise AdapterError(
                    f"{key} is {list(value.shape)}, the model's is {list(place.shape)}. If tokens were added "
                    f"in training, call resize_token_embeddings({value.shape[0]}) on the base model first."
                )
            if whole or key.endswith(".base_layer.weight"):
                taken.add(key)
                pairs.append((place, value))
    return {key: tensor for key, tensor in tensors.items() if key not in taken}, pairs


def set_embeddings(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy embeddings that came with an adapter into the base."""
    with torch.no_grad():
        for place, value in pairs:
            place.copy_(value)


def _places(model: Any, config: LoraConfig) -> dict[str, Tensor]:
    """Return the weights of the base's input and output embeddings by path.

    Not those that the adapter trains in full: their tensors in a file are the adapter's own.
    """
    modules = dict(targets.walk(model))
    found = {}
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            module = getattr(model, getter, lambda: None)()
        except NotImplementedError:
            continue
        if isinstance(module, ModulesToSaveWrapper):
            module = module.original_module
        weight = getattr(module, "weight", None)
        if isinstance(module, LoraLayer):
            module, weight = module.base_layer, module.original_weight
        path = next((path for path, other in modules.items() if other is module), None)
        names = config.modules_to_save or ()
        if path is not None and isinstance(weight, Tensor) and not targets.in_saved(path, names):
            found[path] = weight
    return found


def _resized(model: nn.Module, config: LoraConfig) -> bool | None:
    """Return whether the base has another vocabulary than its files; None if they are not here."""
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    file = _config_file(config.base_model_name_or_path or "")
    if size is None or file is None:
        return None
    before = json.loads(file.read_text(encoding="utf8")).get("vocab_size", size)
    return bool(before != size)


def _config_file(base: str) -> Path | None:
    """Return the base's ``config.json``: in its folder, else in the hub's cache here."""
    if os.path.isdir(base):
        file = Path(base) / "config.json"
        return file if file.is_file() else None
    try:
        cached = try_to_load_from_cache(base, "config.json") if base else None
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None
