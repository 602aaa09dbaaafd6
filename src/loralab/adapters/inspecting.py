"""Which modules a config targets and how a model hangs together, asked in PEFT's words."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from loralab.adapters.functional import adapted
from loralab.core import targets
from loralab.core.config import LoraConfig
from loralab.core.layers import LoraLayer
from loralab.core.model import LoraModel
from loralab.core.tying import embedding_path, tied_paths
from loralab.errors import ConfigError, TargetError

__all__ = [
    "check_target_module_exists",
    "find_minimal_target_modules",
    "get_submodules",
    "include_all_linear_layers",
    "inspect_matched_modules",
    "key_prefixes",
    "module_names_tied_with_embedding",
    "no_split_modules",
    "under_prefixes",
]


class _Named(nn.Module):
    """A module with one descendant, at a given path."""

    def __init__(self, path: str) -> None:
        super().__init__()
        first, _, rest = path.partition(".")
        self.add_module(first, _Named(rest) if rest else nn.Identity())


def check_target_module_exists(config: LoraConfig, key: str) -> bool:
    """Return whether `config` targets a module at the path `key`, as far as names tell."""
    try:
        return key in targets.find_targets(_Named(key), config).paths
    except TargetError:
        return False


def inspect_matched_modules(tuner: LoraModel, adapter_name: str = "default") -> dict[str, list[str]]:
    """Return the paths of the base's modules that an adapter changes ("matched"), and the others."""
    paths = [path for path, _ in targets.walk(tuner.model)]
    held = {layer.path for layer in tuner.lora_layers.values() if adapter_name in layer.adapters}
    return {
        "matched": [path for path in paths if path in held],
        "unmatched": [path for path in paths if path not in held],
    }


def find_minimal_target_modules(
    target_modules: Collection[str], other_module_names: Collection[str]
) -> set[str]:
    """Return the shortest endings that match all the targets and none of the others.

    Raises:
        ConfigError: no list of names, an empty name, or one that is a target and another module.
    """
    if isinstance(target_modules, str) or not target_modules or "" in target_modules:
        raise ConfigError(f"target_modules is {target_modules!r}; expected a list of module names.")
    both = set(target_modules) & set(other_module_names)
    if both:
        raise ConfigError(f"{sorted(both)[0]!r} is named as a target and as another module.")
    return targets.shorten(target_modules, {*target_modules, *other_module_names})


def include_all_linear_layers(peft_config: LoraConfig, model: nn.Module) -> LoraConfig:
    """Return the config, "all-linear" and other presets in it replaced by the paths that they stand for."""
    wanted = peft_config.target_modules
    if not isinstance(wanted, str) or wanted not in targets.PRESETS:
        return peft_config
    return dataclasses.replace(
        peft_config, target_modules=set(targets.find_targets(model, peft_config).paths)
    )


def get_submodules(model: nn.Module, key: str) -> tuple[nn.Module, nn.Module, str]:
    """Return (parent, module, the module's name in it) for the module at the path `key`."""
    parent, _, name = key.rpartition(".")
    return model.get_submodule(parent), model.get_submodule(key), name


def key_prefixes(model: nn.Module, adapter_name: str | None = None) -> set[str]:
    """Return where the tensors of adapters stand in `model`'s state: path, table and, if given, the name."""
    found = set()
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            tables = [name for name, _ in module.named_children() if name != "base_layer"]
            start = f"{path}." if path else ""
            suffix = "" if adapter_name is None else f".{adapter_name}"
            found |= {f"{start}{table}{suffix}" for table in tables}
    return found


def under_prefixes(state_dict: Mapping[str, Any], prefixes: Collection[str]) -> dict[str, Any]:
    """Return the entries whose keys are one of the prefixes or lie below one."""
    known = set(prefixes)

    def inside(key: str) -> bool:
        parts = key.split(".")
        return any(".".join(parts[:length]) in known for length in range(1, len(parts) + 1))

    return {key: value for key, value in state_dict.items() if inside(key)}


def module_names_tied_with_embedding(model: nn.Module) -> list[str]:
    """Return the paths of modules whose weight is that of the input embedding, itself aside."""
    base: nn.Module = model
    if isinstance(model, LoraModel) or isinstance(model._modules.get("base_model"), LoraModel):
        base = adapted(model).model
    modules = dict(targets.walk(base))
    source = embedding_path(base, modules)
    return sorted(tied_paths(modules, source)) if source is not None else []


def no_split_modules(model: nn.Module) -> set[str]:
    """Return the names of classes that transformers does not spread over devices."""
    return set(getattr(model, "_no_split_modules", None) or ())
