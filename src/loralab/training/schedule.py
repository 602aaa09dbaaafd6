"""The learning rate as a function of the step, so that nothing of it needs saving."""

import math
from collections.abc import Callable

from loralab.training.config import RunConfig

__all__ = ["learning_rate", "warmup_of"]

_DECAY = 0.2
"""The part of a wsd schedule over which it falls (Hu et al. 2024, arXiv 2404.06395: a tenth to a fifth)."""

_Shape = Callable[[RunConfig, float, int, int], float]
"""(settings, share of the way after the warm-up, steps after it, warm-up steps) -> share of the peak."""

_SHAPES: dict[str, _Shape] = {
    "constant": lambda config, way, step, warmup: 1.0,
    "constant_with_warmup": lambda config, way, step, warmup: 1.0,
    "linear": lambda config, way, step, warmup: 1 - way,
    "cosine": lambda config, way, step, warmup: _half_cosine(way),
    "cosine_with_restarts": lambda config, way, step, warmup: _half_cosine(way * config.lr_cycles % 1.0),
    "polynomial": lambda config, way, step, warmup: (1 - way) ** config.lr_power,
    "inverse_sqrt": lambda config, way, step, warmup: math.sqrt(_slope(warmup) / (_slope(warmup) + step)),
    "wsd": lambda config, way, step, warmup: min(1.0, (1 - way) / _DECAY),
}


def warmup_of(config: RunConfig, steps: int) -> int:
    """Return the number of warm-up steps of a run of `steps` steps."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    if config.warmup_ratio is not None:
        return round(config.warmup_ratio * steps)
    return 0 if config.lr_scheduler == "constant" else steps // 20


def learning_rate(config: RunConfig, step: int, steps: int) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0, of `steps`."""
    peak, warmup = config.peak_learning_rate, warmup_of(config, steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    way = (step - warmup) / max(1, steps - warmup)
    return peak * _SHAPES[config.lr_scheduler](config, way, step - warmup, warmup)


def _half_cosine(way: float) -> float:
    return (1 + math.cos(math.pi * way)) / 2


def _slope(warmup: int) -> int:
    """Return after how many steps the inverse square root is down to 1 / sqrt(2) of the peak."""
    return warmup or 100
