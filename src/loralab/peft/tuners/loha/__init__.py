"""PEFT's names of LoHa, which is not LoRA."""

from loralab.peft.others import (
    LoHaConfig,
    LoHaModel,
)

__all__ = [
    "LoHaConfig",
    "LoHaModel",
]
