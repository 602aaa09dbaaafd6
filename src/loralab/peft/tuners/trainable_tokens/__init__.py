"""PEFT's names of trained tokens."""

from loralab.peft.others import (
    TrainableTokensConfig,
    TrainableTokensModel,
)

__all__ = [
    "TrainableTokensConfig",
    "TrainableTokensModel",
]
