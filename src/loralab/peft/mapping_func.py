"""PEFT's name of what adapts a model."""

from loralab.adapters.auto import (
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING,
)
from loralab.adapters.tasks import (
    get_peft_model,
)

__all__ = [
    "MODEL_TYPE_TO_PEFT_MODEL_MAPPING",
    "get_peft_model",
]
