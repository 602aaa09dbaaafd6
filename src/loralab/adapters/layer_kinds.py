"""PEFT's names of LoRA layers, for ``isinstance(module, lora.Linear)``."""

from typing import Any

from loralab.core.layers import LoraLayer
from loralab.errors import ConfigError

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "Embedding",
    "Linear",
    "Linear4bit",
    "Linear8bitLt",
    "MultiheadAttention",
    "ParamWrapper",
    "TorchaoLoraLinear",
]


class _Kind(type):
    """A name for the layers that answer to it as their `peft_name`."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, LoraLayer) and instance.peft_name == cls.__name__

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError(
            f"lora.{cls.__name__} is not made by hand; get_peft_model wraps the layers it adapts."
        )


class Linear(metaclass=_Kind):
    """Over `torch.nn.Linear` and transformers' `Conv1D`."""


class Embedding(metaclass=_Kind):
    """Over `torch.nn.Embedding`."""


class Conv1d(metaclass=_Kind):
    """Over `torch.nn.Conv1d`."""


class Conv2d(metaclass=_Kind):
    """Over `torch.nn.Conv2d`."""


class Conv3d(metaclass=_Kind):
    """Over `torch.nn.Conv3d`."""


class MultiheadAttention(metaclass=_Kind):
    """Over `torch.nn.MultiheadAttention`."""


class ParamWrapper(metaclass=_Kind):
    """Over a parameter that is no layer's, as `target_parameters` names it."""


class Linear8bitLt(metaclass=_Kind):
    """Over bitsandbytes' linear layer of 8 bits."""


class Linear4bit(metaclass=_Kind):
    """Over bitsandbytes' linear layer of 4 bits."""


class TorchaoLoraLinear(metaclass=_Kind):
    """Over a linear layer whose weight torchao keeps."""
