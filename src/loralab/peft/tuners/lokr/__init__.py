"""PEFT's names of LoKr, which is not LoRA."""

from loralab.peft.others import (
    LoKrConfig,
    LoKrModel,
)

__all__ = [
    "LoKrConfig",
    "LoKrModel",
]
