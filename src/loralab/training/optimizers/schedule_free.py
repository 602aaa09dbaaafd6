"""AdamW without a schedule (Defazio et al. 2024, arXiv 2405.15682): what is kept is an average of the way."""

from typing import Any

import torch

from loralab.errors import ConfigError
from loralab.training.config import RunConfig

STATES = 2.0


def make(groups: list[dict[str, Any]], config: RunConfig) -> torch.optim.Optimizer:
    """Return AdamWScheduleFree, ready to train.

    Raises:
        ConfigError: the package schedulefree is not installed.
    """
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError:
        raise ConfigError(
            "optimizer schedule-free needs the package schedulefree: pip install 'loralab[optim]'."
        ) from None
    optimizer = AdamWScheduleFree(groups, lr=config.peak_learning_rate)
    optimizer.train()
    made: torch.optim.Optimizer = optimizer
    return made
