"""The learning rate as a function of the step, so that nothing of it needs saving."""

import math

from loralab.training.config import RunConfig


def warmup_of(config: RunConfig, steps: int) -> int:
    """Return the number of warm-up steps of a run of `steps` steps."""
    return steps // 20 if config.warmup_steps is None else config.warmup_steps


def learning_rate(config: RunConfig, step: int, steps: int) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0, of `steps`."""
    warmup = warmup_of(config, steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    if config.lr_scheduler == "constant":
        return config.learning_rate
    left = (steps - step) / max(1, steps - warmup)
    if config.lr_scheduler == "cosine":
        left = (1 + math.cos(math.pi * (1 - left))) / 2
    return config.learning_rate * left
