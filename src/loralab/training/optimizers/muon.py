"""Muon (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982): steps of one size in all directions."""

from typing import Any

import torch

from loralab.errors import ConfigError
from loralab.training.config import RunConfig

STATES = 1.0


def make(groups: list[dict[str, Any]], config: RunConfig) -> torch.optim.Optimizer:
    """Return torch's Muon; its steps are scaled to the size of AdamW's, so that rates carry over.

    Raises:
        ConfigError: something other than a matrix is to be trained.
    """
    if any(parameter.dim() != 2 for group in groups for parameter in group["params"]):
        raise ConfigError(
            "optimizer muon trains matrices only, and this run trains vectors or kernels too (DoRA, norms, "
            "convolutions); leave them out, or take adamw."
        )
    return torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw")
