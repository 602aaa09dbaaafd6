"""PEFT's names of its errors."""

from loralab.errors import (
    LoralabError as PeftError,
)
from loralab.errors import (
    TargetError as NoMatchingPeftModuleError,
)

__all__ = [
    "NoMatchingPeftModuleError",
    "PeftError",
]
