"""PEFT's names of LoRA's settings."""

from loralab.core.config import (
    LoraConfig,
)
from loralab.core.init_config import (
    CordaConfig,
    EvaConfig,
    LoftQConfig,
    LoraGAConfig,
)
from loralab.core.peft_config import (
    LoraRuntimeConfig,
)
from loralab.peft.others import (
    ArrowConfig,
    BdLoraConfig,
    KasaConfig,
    MontecloraConfig,
    VeloraConfig,
)

__all__ = [
    "ArrowConfig",
    "BdLoraConfig",
    "CordaConfig",
    "EvaConfig",
    "KasaConfig",
    "LoftQConfig",
    "LoraConfig",
    "LoraGAConfig",
    "LoraRuntimeConfig",
    "MontecloraConfig",
    "VeloraConfig",
]
