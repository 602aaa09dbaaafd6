"""PEFT's name of models with several methods."""

from loralab.peft.others import (
    PeftMixedModel,
)

__all__ = [
    "PeftMixedModel",
]
