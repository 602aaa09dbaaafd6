"""PEFT's name of a dictionary of buffers."""

from loralab.adapters.peft_tables import (
    BufferDict,
)

__all__ = [
    "BufferDict",
]
