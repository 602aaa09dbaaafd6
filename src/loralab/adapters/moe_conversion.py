"""Adapters of mixtures of experts that were named when every expert had linear layers of its own.

Since transformers 5 the experts of a layer are two parameters: `gate_up_proj` [E, 2 O, I], in which two
matrices of each expert lie on top of each other, and `down_proj` [E, O, I]. Targets and files that name the
matrices (Mixtral's w1, w3 and w2; gate_proj, up_proj and down_proj elsewhere) stand for these parameters.
transformers' own table says what became of each name.

Shape key: E experts, I in, O out, R rank.
"""

import dataclasses
import importlib
import math
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from loralab.core import targets
from loralab.core.config import LoraConfig
from loralab.core.layers import is_linear
from loralab.errors import TargetError

__all__ = ["PARAMETERS", "FormerExperts", "for_stacked_experts", "former_experts"]

PARAMETERS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class _Experts:
    """The stacked experts of one layer of a model."""

    path: str
    count: int
    old_path: str
    """The path that they had before."""


@dataclass(frozen=True)
class FormerExperts:
    """What a kind of model had before."""

    matrices: dict[str, tuple[str, ...]]
    """By parameter, the names of the matrices that it stacks, in their order."""
    renamings: tuple[Any, ...]
    """transformers' `WeightRenaming`s."""

    def new_name(self, key: str) -> str:
        """Return a name as it is now."""
        for renaming in self.renamings:
            key, _ = renaming.rename_source_key(key)
        return key


def for_stacked_experts(model: nn.Module, config: LoraConfig) -> LoraConfig:
    """Return the config with `target_parameters` for the experts and routers that its targets name.

    A parameter of several matrices gets their ranks together, and keeps the scale of each.

    Raises:
        TargetError: only some matrices of a parameter are targeted, or settings are for some experts alone.
    """
    table = former_experts(model)
    if table is None or not config.target_modules or config.target_modules in ("attention", "feed-forward"):
        return config
    modules = dict(targets.walk(model))
    found = _experts(modules, table)
    hits = _targeted(config, found, table)
    parameters = [p for p in PARAMETERS if any(hits[name] for name in table.matrices[p])]
    ranks, alphas = _patterns(config, parameters, table)
    routers = _routers(config, found, modules)
    if not parameters and not routers:
        return config
    places = set(routers)
    for parameter in parameters:
        layers = set().union(*(hits[name] for name in table.matrices[parameter]))
        missing = [name for name in table.matrices[parameter] if hits[name] != layers]
        if missing:
            there = ", ".join(name for name in table.matrices[parameter] if hits[name])
            raise TargetError(
                f"target_modules names {there} of the experts but not {', '.join(missing)}, which this "
                f"transformers keeps in the same parameter, {parameter}. Name both, or neither."
            )
        places |= {parameter} if len(layers) == len(found) else {f"{path}.{parameter}" for path in layers}
    return dataclasses.replace(
        config,
        target_modules=_others(config, table, modules, routers),
        target_parameters=sorted({*(config.target_parameters or ()), *places}),
        rank_pattern=ranks | {k: v for k, v in config.rank_pattern.items() if k not in ranks},
        alpha_pattern=alphas | {k: v for k, v in config.alpha_pattern.items() if k not in alphas},
    )


def former_experts(model: nn.Module) -> FormerExperts | None:
    """Return what transformers knows of a model's former experts; None if it had none."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(kind, str) or "transformers" not in sys.modules:
        return None
    steps = importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping(kind)
    matrices = {}
    renamings = []
    for step in steps or ():
        ending = step.target_patterns[0].rpartition(".experts.")[2]
        if ending in PARAMETERS and hasattr(step, "operations"):
            matrices[ending] = tuple(source.split(".")[-2] for source in step.source_patterns)
        elif not hasattr(step, "operations"):
            renamings.append(step)
    return FormerExperts(matrices, tuple(renamings)) if len(matrices) == len(PARAMETERS) else None


def _experts(modules: Mapping[str, nn.Module], table: FormerExperts) -> list[_Experts]:
    found = []
    for path, module in modules.items():
        stacks = [getattr(module, parameter, None) for parameter in PARAMETERS]
        if all(isinstance(stack, Tensor) and stack.dim() == 3 for stack in stacks):
            block, _, last = path.rpartition(".")
            old = f"{block.rpartition('.')[0]}.block_sparse_moe.{last}"
            found.append(
                _Experts(
                    path,
                    module.get_parameter(PARAMETERS[0]).shape[0],
                    old if table.new_name(old) == path else path,
                )
            )
    return found


def _wanted(config: LoraConfig, paths: Collection[str], own: Collection[str]) -> bool:
    """Return whether a layer with these paths is targeted, and neither it nor what is its own excluded."""
    everything = config.target_modules == "all-linear"
    targeted = everything or any(_names(config.target_modules, path) for path in paths)
    return targeted and not any(_names(config.exclude_modules, path) for path in (*paths, *own))


def _names(names: str | Collection[str] | None, path: str) -> bool:
    """Return whether a regex or a list of names, which targets are, names `path`."""
    if not names:
        return False
    if not isinstance(names, str):
        return f".{path}".endswith(tuple(f".{name}" for name in names))
    try:
        return re.fullmatch(names, path) is not None
    except re.error:
        return False  # refused where modules are looked for


def _targeted(config: LoraConfig, found: Iterable[_Experts], table: FormerExperts) -> dict[str, set[str]]:
    """Return by matrix the paths of the experts of which the config targets it.

    Raises:
        TargetError: of some experts of a layer only, or with another rank or alpha than the config's.
    """
    hits: dict[str, set[str]] = {name: set() for parts in table.matrices.values() for name in parts}
    for parameter, name in ((p, name) for p, parts in table.matrices.items() for name in parts):
        for experts in found:
            own = (experts.path, f"{experts.path}.{parameter}")
            paths = [
                (f"{experts.path}.{number}.{name}", f"{experts.old_path}.{number}.{name}")
                for number in range(experts.count)
            ]
            wanted = [_wanted(config, both, own) for both in paths]
            if not any(wanted):
                continue
            sizes = {(config.rank_of(path), config.alpha_of(path)) for both in paths for path in both}
            if sizes != {(config.r, config.lora_alpha)}:
                raise TargetError(_by_parameter("rank_pattern or alpha_pattern is", name))
            if config.layers_to_transform is not None:
                raise TargetError(_by_parameter("layers_to_transform is", name))
            if not all(wanted):
                raise TargetError(_by_parameter("a choice among them is", name))
            hits[name].add(experts.path)
    return hits


def _by_parameter(setting: str, name: str) -> str:
    return (
        f"{name!r} names experts, which this transformers keeps in one parameter for each layer; {setting} "
        "not carried over. Name target_parameters=['experts.gate_up_proj', 'experts.down_proj']."
    )


def _routers(config: LoraConfig, found: Iterable[_Experts], modules: Mapping[str, nn.Module]) -> set[str]:
    """Return the parameters of the targeted routers: linear layers before, modules of their own kind now."""
    wanted: dict[str, bool] = {}
    for experts in found:
        path, old = (f"{place.rpartition('.')[0]}.gate" for place in (experts.path, experts.old_path))
        router = modules.get(path)
        if (
            router is not None
            and not is_linear(router)
            and isinstance(getattr(router, "weight", None), Tensor)
        ):
            wanted[path] = _wanted(config, (path, old), ())
    if wanted and all(wanted.values()):
        return {"gate.weight"}
    return {f"{path}.weight" for path, hit in wanted.items() if hit}


def _others(
    config: LoraConfig, table: FormerExperts, modules: Mapping[str, nn.Module], routers: Collection[str]
) -> str | set[str]:
    """Return the targets that are left: those of linear layers."""
    wanted = config.target_modules
    linear = [path for path, module in modules.items() if is_linear(module)]
    if wanted == "all-linear":
        return wanted
    if isinstance(wanted, str):
        found = {path for path in modules if _names(wanted, path)}
        left = {path for path in found if not _names(routers, f"{path}.weight")}
        return wanted if left == found and found else left
    left = set()
    old = {name for parts in table.matrices.values() for name in parts} | {"gate"}
    for entry in wanted or ():
        if entry.rpartition(".")[2] in old:
            left |= {path for path in linear if _names([entry], path)}
        else:
            left.add(entry)
    return left


def _patterns(
    config: LoraConfig, parameters: Iterable[str], table: FormerExperts
) -> tuple[dict[str, int], dict[str, float]]:
    """Return the entries of rank_pattern and alpha_pattern for parameters that stack several matrices."""
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for parameter in parameters:
        many = len(table.matrices[parameter])
        if many > 1:
            key = rf".*\.{parameter}"
            ranks[key] = config.r * many
            alphas[key] = config.lora_alpha * (math.sqrt(many) if config.use_rslora else many)
    return ranks, alphas
