"""PEFT's name of what transformers loads adapters by."""

from loralab.adapters.weight_mapping import (
    build_peft_weight_mapping,
)

__all__ = [
    "build_peft_weight_mapping",
]
