"""Adafactor (Shazeer and Stern 2018, arXiv 1804.04235): a row and a column in place of a second moment."""

from typing import Any

import torch
from transformers.optimization import Adafactor

from loralab.training.config import RunConfig

STATES = 0.1


def make(groups: list[dict[str, Any]], config: RunConfig) -> torch.optim.Optimizer:
    """Return transformers' Adafactor, which follows the run's learning rate.

    It does not scale its steps by a parameter's own size: B begins at zero, and would stay there.
    """
    return Adafactor(groups, lr=config.peak_learning_rate, scale_parameter=False, relative_step=False)
