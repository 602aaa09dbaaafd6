"""PEFT's names of quantizations, as a layer's `quantization_backend`."""

from loralab.core.layers.quantized import (
    Bnb4bitBackend,
    Bnb8bitBackend,
    QuantizationBackend,
    TorchaoBackend,
)

__all__ = [
    "Bnb4bitBackend",
    "Bnb8bitBackend",
    "QuantizationBackend",
    "TorchaoBackend",
]
