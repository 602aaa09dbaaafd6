"""PEFT's name of a LoHa layer, which no model here has."""

from loralab.peft.others import (
    LoHaLayer,
)

__all__ = [
    "LoHaLayer",
]
