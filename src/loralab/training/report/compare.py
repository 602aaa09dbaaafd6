"""Runs side by side: what differs in their settings, and their validation losses at the same steps."""

import functools
from collections.abc import Mapping
from typing import Any

from loralab.training.config import RunConfig
from loralab.training.history import History

__all__ = ["common_losses", "differing_settings"]

_SAME = ("name", "runs")
"""Settings that say which run it is, not what it does."""


def differing_settings(configs: Mapping[str, RunConfig]) -> dict[str, dict[str, Any]]:
    """Return the settings that are not the same in all runs: by setting, the value of each run."""
    found = {}
    for setting in RunConfig.model_fields:
        values = {name: getattr(config, setting) for name, config in configs.items()}
        first, *others = values.values()
        if setting not in _SAME and any(value != first for value in others):
            found[setting] = values
    return found


def common_losses(histories: Mapping[str, History]) -> dict[int, dict[str, float]]:
    """Return the validation losses at the steps at which all runs were evaluated: by step, of each run."""
    losses = {
        name: {event.step: event.loss for event in history.evaluations} for name, history in histories.items()
    }
    common = functools.reduce(set[int].intersection, (set(by_step) for by_step in losses.values()))
    return {step: {name: losses[name][step] for name in losses} for step in sorted(common)}
