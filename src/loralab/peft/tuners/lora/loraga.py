"""PEFT's name of what LoRA-GA needs before an adapter is attached."""

from loralab.adapters.preprocess import (
    preprocess_loraga,
)

__all__ = [
    "preprocess_loraga",
]
