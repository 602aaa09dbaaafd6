"""PEFT's names of LoRA layers."""

from loralab.adapters.layer_kinds import (
    Conv1d,
    Conv2d,
    Conv3d,
    Embedding,
    Linear,
    MultiheadAttention,
    ParamWrapper,
)
from loralab.core.layers import (
    LoraLayer,
)

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "Embedding",
    "Linear",
    "LoraLayer",
    "MultiheadAttention",
    "ParamWrapper",
]
