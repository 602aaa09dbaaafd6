"""Optimizers by name: one file each, and the folder is the registry.

An entry has ``make(groups, config)``, which returns a `torch.optim.Optimizer` over parameter groups. Each
group has its "params", its "weight_decay", and "lr_scale", which multiplies the learning rate. STATES is
what it keeps, as a multiple of what trains.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

from loralab.core.layers import LoraLayer
from loralab.core.registry import Registry
from loralab.training.config import RunConfig

__all__ = ["REGISTRY", "make_optimizer", "set_rate", "settled", "states_of"]

REGISTRY = Registry(__name__, list(__path__), "optimizer")


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Return the optimizer of the settings over the parameters that train.

    B has `lora_plus_ratio` times the rate of the rest (Hayou et al. 2024, arXiv 2402.12354, section 3).
    Vectors, as norms and biases, do not decay.

    Raises:
        ConfigError: the optimizer's library is missing, or it cannot train these parameters.
    """
    optimizer: torch.optim.Optimizer = _entry(config).make(_groups(model, config), config)
    set_rate(optimizer, config.peak_learning_rate)
    return optimizer


def states_of(config: RunConfig) -> float:
    """Return what the optimizer of the settings keeps, as a multiple of what trains."""
    states: float = _entry(config).STATES
    return states


def set_rate(optimizer: Any, rate: float) -> None:
    """Give each group its learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


@contextmanager
def settled(optimizer: Any) -> Iterator[None]:
    """Within the block the parameters are what the optimizer would have used: for most, they always are.

    A schedule-free optimizer trains at other points than the averages that it is to be judged by. Afterwards
    everything is bit for bit as before.
    """
    if not hasattr(optimizer, "eval"):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)


def _entry(config: RunConfig) -> ModuleType:
    return REGISTRY.get(config.optimizer)


def _groups(model: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    fast = {
        id(layer.factors(name)[1])
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        for name in layer.adapters
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        scale = config.lora_plus_ratio if id(parameter) in fast else 1.0
        decay = config.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": params, "lr_scale": scale, "weight_decay": decay, "lr": 0.0}
        for (scale, decay), params in groups.items()
    ]
