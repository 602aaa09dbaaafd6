"""PEFT's names of kinds and tasks."""

from loralab.core.peft_config import (
    PeftType,
    TaskType,
)

__all__ = [
    "PeftType",
    "TaskType",
]
