"""Configs of adapters that were computed, not trained: their ranks, scales and targets."""

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from loralab.core.config import LoraConfig

__all__ = ["explicit_targets", "joint_targets", "with_scales"]

_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def with_scales(config: LoraConfig, scales: Mapping[str, tuple[int, float]]) -> LoraConfig:
    """Return the config with the (rank, alpha) of each module: the commonest, and patterns for others."""
    (rank, alpha), _ = Counter(scales.values()).most_common(1)[0]
    # "^" holds a key to the whole path, for PEFT's readers too: one path may end another.
    others = {f"^{re.escape(path)}": pair for path, pair in scales.items() if pair != (rank, alpha)}
    return dataclasses.replace(
        config,
        r=rank,
        lora_alpha=alpha,
        rank_pattern={key: r for key, (r, _) in others.items() if r != rank},
        alpha_pattern={key: a for key, (_, a) in others.items() if a != alpha},
    )


def explicit_targets(paths: Collection[str]) -> dict[str, object]:
    """Return target fields that name each of `paths` in full."""
    return dict.fromkeys(_TARGETS) | {"target_modules": set(paths)}


def joint_targets(configs: Sequence[LoraConfig], paths: Collection[str]) -> dict[str, object]:
    """Return target fields that stand for `paths`, all the modules that the configs target together.

    The configs' own words where they can be joined, else the whole paths.
    """
    first = {name: getattr(configs[0], name) for name in _TARGETS}
    if all({name: getattr(config, name) for name in _TARGETS} == first for config in configs):
        return first
    names = [c.target_modules for c in configs if not c.exclude_modules and c.layers_to_transform is None]
    lists = [set(words) for words in names if isinstance(words, set | list)]
    if len(lists) < len(configs):
        return explicit_targets(paths)
    return explicit_targets(set().union(*lists))
