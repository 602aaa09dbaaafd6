"""PEFT's name of a LoRA layer over torchao."""

from loralab.adapters.layer_kinds import (
    TorchaoLoraLinear,
)

__all__ = [
    "TorchaoLoraLinear",
]
