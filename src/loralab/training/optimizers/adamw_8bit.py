"""AdamW with its states in 8 bits (Dettmers et al. 2021, arXiv 2110.02861), of bitsandbytes.

It helps where whole matrices train; the states of an adapter are small anyway.
"""

from typing import Any

import torch

from loralab.errors import ConfigError
from loralab.training.config import RunConfig

STATES = 0.5


def make(groups: list[dict[str, Any]], config: RunConfig) -> torch.optim.Optimizer:
    """Return AdamW8bit.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes
    except ImportError:
        raise ConfigError("optimizer adamw-8bit needs bitsandbytes: pip install 'loralab[quant]'.") from None
    kind: Any = getattr(bitsandbytes.optim, "AdamW8bit")  # noqa: B009
    optimizer: torch.optim.Optimizer = kind(groups)
    return optimizer
