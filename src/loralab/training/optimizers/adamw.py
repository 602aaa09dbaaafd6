"""AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), torch's own."""

from typing import Any

import torch

from loralab.training.config import RunConfig

STATES = 2.0


def make(groups: list[dict[str, Any]], config: RunConfig) -> torch.optim.Optimizer:
    """Return AdamW; its states are as small as the adapter."""
    return torch.optim.AdamW(groups)
