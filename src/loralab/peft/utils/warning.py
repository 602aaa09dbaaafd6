"""PEFT's name of its warning."""

from loralab.adapters.functional import (
    PeftWarning,
)

__all__ = [
    "PeftWarning",
]
