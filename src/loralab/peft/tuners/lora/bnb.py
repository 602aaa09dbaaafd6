"""PEFT's names of LoRA layers over bitsandbytes."""

from loralab.adapters.layer_kinds import (
    Linear4bit,
    Linear8bitLt,
)

__all__ = [
    "Linear4bit",
    "Linear8bitLt",
]
