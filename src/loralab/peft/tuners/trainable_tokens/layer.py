"""PEFT's name of an embedding with trained rows."""

from loralab.core.tokens import (
    TrainableTokensLayer,
)

__all__ = [
    "TrainableTokensLayer",
]
