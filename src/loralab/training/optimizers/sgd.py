"""Stochastic gradient descent with momentum, torch's own."""

from typing import Any

import torch

from loralab.training.config import RunConfig

STATES = 1.0


def make(groups: list[dict[str, Any]], config: RunConfig) -> torch.optim.Optimizer:
    """Return SGD with momentum 0.9. It wants a far higher learning rate than the others."""
    return torch.optim.SGD(groups, momentum=0.9)
