"""PEFT's name of what starts modules without values."""

from loralab.adapters.peft_tables import (
    skip_init_on_device,
)

__all__ = [
    "skip_init_on_device",
]
