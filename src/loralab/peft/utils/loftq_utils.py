"""PEFT's name of LoftQ over a quantized base."""

from loralab.adapters.loftq import (
    replace_lora_weights_loftq,
)

__all__ = [
    "replace_lora_weights_loftq",
]
