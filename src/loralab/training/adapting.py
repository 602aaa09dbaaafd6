"""What a run's settings say of its adapter, as a `LoraConfig` on a model."""

import dataclasses
from typing import Any

import torch
from torch import nn

from loralab.adapters.peft_format import read_config
from loralab.adapters.store import find_adapter
from loralab.core.config import LoraConfig
from loralab.core.inits import changes_base
from loralab.core.model import LoraModel
from loralab.core.targets import PRESETS, find_targets, in_saved, named, shorten, walk
from loralab.core.tying import embedding_path, tied_paths
from loralab.errors import ConfigError
from loralab.training.config import RunConfig
from loralab.training.forecast import stack_of

__all__ = ["adapter_config", "own_settings", "soften_start", "usual_targets"]

_OWN = ("r", "lora_alpha", "use_rslora", "use_dora")
_SMALL_VOCABULARY = 4096


def adapter_config(config: RunConfig, model: nn.Module) -> LoraConfig:
    """Return the config of the run's adapter on a model.

    Raises:
        ConfigError: the model has fewer layers than `last_layers`, or a setting does not go with its weights.
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
    saved = _saved(config)
    whole = _shares_embedding(model, [], saved)
    tied = whole or _shares_embedding(model, targets, [])
    if tied and not whole and _wants_its_own(config):
        what = "use_dora" if config.use_dora else f"init {config.init}"
        raise ConfigError(
            f"{what} does not go with embeddings whose weight is the output head's too, as this model's is; "
            "leave embeddings and head out of target_modules."
        )
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        layers_to_transform=layers,
        modules_to_save=saved or None,
        ensure_weight_tying=tied,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=True if config.init == "kaiming" else config.init,
        task_type="CAUSAL_LM",
        base_model_name_or_path=config.model,
    )


def usual_targets(config: RunConfig, model: nn.Module) -> str:
    """Return the targets of an adapter on a model where the settings name none.

    Every linear layer, and the embeddings too where the vocabulary is small: its rows are trained often, and
    are r (V + D) numbers more. At 512 tokens that lifts r = 8 from 95 to 98 % of what full fine-tuning
    improves (docs/quality.md). Of a large vocabulary a row is rarely met, and not every server takes adapters
    on embeddings. Nor are they added where other settings leave no room for them.
    """
    modules = dict(walk(model))
    source = embedding_path(model, modules)
    embedding = modules[source] if source else None
    if source is None or not isinstance(embedding, nn.Embedding) or config.last_layers is not None:
        return "all-linear"
    tied = tied_paths(modules, source)
    whole = any(in_saved(path, _saved(config)) for path in (source, *tied))
    if embedding.num_embeddings > _SMALL_VOCABULARY or whole or (tied and _wants_its_own(config)):
        return "all-linear"
    return "all-linear, embeddings"


@torch.no_grad()
def soften_start(lora: LoraModel, name: str) -> None:
    """Make the B of an adapter's embeddings as small as the weights below it, where A is still zero.

    PEFT draws it from N(0, 1). The rows of embeddings are a tenth of that, so the first steps of A would move
    them by more than all that the base knows of a word.
    """
    for layer in lora.lora_layers.values():
        if layer.lookup and name in layer.adapters:
            deviation = layer.original_weight.float().std()
            if deviation > 0:
                layer.factors(name)[1].mul_(deviation)


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
            path = embedding_path(model, everything)
            if path is None:
                raise ConfigError("target_modules: this model has no embeddings that could be found.")
            chosen.add(path)
        else:
            wanted = word if word in PRESETS else [word]
            of_one = LoraConfig(target_modules=wanted, layers_to_transform=layers)
            chosen.update(find_targets(model, of_one, everything).paths)
    return sorted(shorten(chosen, everything)), None


def _saved(config: RunConfig) -> list[str]:
    return [word.strip() for word in config.modules_to_save.split(",") if word.strip()]


def _wants_its_own(config: RunConfig) -> bool:
    """Return whether an adapter of this kind cannot share its factors with a tied output head."""
    return config.use_dora or changes_base(config.init)


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
