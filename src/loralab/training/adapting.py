"""What a run's settings say of its adapter, as a `LoraConfig` on a model."""

import dataclasses
from typing import Any

from torch import nn

from loralab.adapters.peft_format import read_config
from loralab.adapters.store import find_adapter
from loralab.core.config import LoraConfig
from loralab.core.targets import PRESETS, find_targets, named, shorten, walk
from loralab.core.tying import embedding_path, tied_paths
from loralab.errors import ConfigError
from loralab.training.config import RunConfig
from loralab.training.forecast import stack_of

__all__ = ["adapter_config", "own_settings"]

_OWN = ("r", "lora_alpha", "use_rslora", "use_dora")


def adapter_config(config: RunConfig, model: nn.Module) -> LoraConfig:
    """Return the config of the run's adapter on a model.

    Raises:
        ConfigError: the model has fewer layers than `last_layers`.
        TargetError: a target matches nothing.
        AdapterError: the adapter to go on from cannot be found.
    """
    if config.from_adapter is not None:
        lora = read_config(find_adapter(config.from_adapter, config.runs))
        return dataclasses.replace(lora, lora_dropout=config.lora_dropout)
    longest = max((max(weight.shape) for weight in model.parameters() if weight.dim() > 1), default=config.r)
    if config.r > longest:
        raise ConfigError(f"r is {config.r}, and no weight of this model has a side longer than {longest}.")
    targets, layers = _targets(config, model)
    saved = [word.strip() for word in config.modules_to_save.split(",") if word.strip()]
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        layers_to_transform=layers,
        modules_to_save=saved or None,
        ensure_weight_tying=_shares_embedding(model, targets, saved),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=True if config.init == "kaiming" else config.init,
        task_type="CAUSAL_LM",
        base_model_name_or_path=config.model,
    )


def own_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that the adapter has which a run goes on from; none for a run that begins anew.

    Raises:
        ConfigError: the settings say something else.
        AdapterError: there is no such adapter.
    """
    if config.from_adapter is None:
        return {}
    lora = read_config(find_adapter(config.from_adapter, config.runs))
    own = {name: getattr(lora, name) for name in _OWN}
    for name, value in own.items():
        if name in config.model_fields_set and getattr(config, name) != value:
            raise ConfigError(
                f"{name} is {getattr(config, name)!r}, and the adapter {config.from_adapter} has {value!r}: "
                "a run goes on with what it has; leave it out."
            )
    return own


def _targets(config: RunConfig, model: nn.Module) -> tuple[str | list[str], list[int] | None]:
    """Return `target_modules` and `layers_to_transform` for a `LoraConfig` on this model.

    Presets may be mixed with each other, with "embeddings" and with names; they then become names.

    Raises:
        ConfigError: the model has fewer layers than `last_layers`.
        TargetError: one of several targets matches nothing.
    """
    layers = _last(config.last_layers, model)
    targets = config.targets
    if isinstance(targets, str) or not set(targets) & {*PRESETS, "embeddings"}:
        return targets, layers
    everything = dict(walk(model))
    chosen: set[str] = set()
    for word in targets:
        if word == "embeddings":
            chosen.add(_embeddings(model, everything))
        else:
            wanted = word if word in PRESETS else [word]
            of_one = LoraConfig(target_modules=wanted, layers_to_transform=layers)
            chosen.update(find_targets(model, of_one, everything).paths)
    return sorted(shorten(chosen, everything)), None


def _shares_embedding(model: nn.Module, targets: str | list[str], saved: list[str]) -> bool:
    """Return whether the embedding is trained and an output head, which has its weight, has to follow."""
    modules = dict(walk(model))
    source = embedding_path(model, modules)
    tied = tied_paths(modules, source) if source else []
    names = targets if isinstance(targets, list) else []
    return any(named(path, names) or path.endswith(tuple(saved)) for path in (source, *tied) if path and tied)


def _last(count: int | None, model: nn.Module) -> list[int] | None:
    if count is None:
        return None
    there = len(stack_of(model))
    if count > there:
        raise ConfigError(f"last_layers is {count}, and the model has {there} layers.")
    return list(range(there - count, there))


def _embeddings(model: nn.Module, modules: dict[str, nn.Module]) -> str:
    finder = getattr(model, "get_input_embeddings", None)
    found = finder() if callable(finder) else None
    path = next((path for path, module in modules.items() if module is found), None)
    if path is None:
        raise ConfigError("target_modules: this model has no embeddings that could be found.")
    return path
