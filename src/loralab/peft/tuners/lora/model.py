"""PEFT's names of a model with LoRA layers."""

from loralab.core.model import (
    LoraModel,
)
from loralab.core.targets import (
    DEFAULT_TARGETS as TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)

__all__ = [
    "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
    "LoraModel",
]
