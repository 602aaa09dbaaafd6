"""PEFT's name of what CorDA needs before an adapter is attached."""

from loralab.adapters.preprocess import (
    preprocess_corda,
)

__all__ = [
    "preprocess_corda",
]
