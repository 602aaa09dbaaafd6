"""PEFT's names of configs."""

from loralab.core.peft_config import (
    CONFIG_FILE as CONFIG_NAME,
)
from loralab.core.peft_config import (
    PeftConfig,
)
from loralab.peft.others import (
    PromptLearningConfig,
)

__all__ = [
    "CONFIG_NAME",
    "PeftConfig",
    "PromptLearningConfig",
]
