"""PEFT's names of conversions to LoRA."""

from loralab.adapters.conversion import (
    convert_to_lora,
    save_as_lora,
)

__all__ = [
    "convert_to_lora",
    "save_as_lora",
]
