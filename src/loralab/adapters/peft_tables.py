"""Constants and small parts that stand under names of PEFT and belong to nothing else here."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from loralab.core.config import LoraConfig
from loralab.core.model import LoraModel
from loralab.core.peft_config import PeftConfig, PeftType

__all__ = [
    "ALLOWED_COMPUTE_DTYPES",
    "DUMMY_MODEL_CONFIG",
    "DUMMY_TARGET_MODULES",
    "EMBEDDING_LAYER_NAMES",
    "INCLUDE_LINEAR_LAYERS_SHORTHAND",
    "MIN_TARGET_MODULES_FOR_OPTIMIZATION",
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "PEFT_TYPE_TO_MIXED_MODEL_MAPPING",
    "PEFT_TYPE_TO_PREFIX_MAPPING",
    "PEFT_TYPE_TO_TUNER_MAPPING",
    "SEQ_CLS_HEAD_NAMES",
    "TOKENIZER_CONFIG_NAME",
    "TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING",
    "UPCAST_DTYPES",
    "BufferDict",
    "fsdp_auto_wrap_policy",
    "get_peft_config",
    "skip_init_on_device",
    "transpose",
]

PEFT_TYPE_TO_CONFIG_MAPPING = {PeftType.LORA: LoraConfig}
PEFT_TYPE_TO_TUNER_MAPPING = {PeftType.LORA: LoraModel}
PEFT_TYPE_TO_MIXED_MODEL_MAPPING: dict[PeftType, type] = {}
PEFT_TYPE_TO_PREFIX_MAPPING = {PeftType.LORA: LoraModel.prefix}
TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING: dict[str, Any] = {}
ALLOWED_COMPUTE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
UPCAST_DTYPES = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
DUMMY_MODEL_CONFIG = {"model_type": "custom"}
DUMMY_TARGET_MODULES = "dummy-target-modules"
EMBEDDING_LAYER_NAMES = ["embed_tokens", "lm_head"]
SEQ_CLS_HEAD_NAMES = ["score", "classifier"]
INCLUDE_LINEAR_LAYERS_SHORTHAND = "all-linear"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
MIN_TARGET_MODULES_FOR_OPTIMIZATION = 20

_P = ParamSpec("_P")
_T = TypeVar("_T")


def get_peft_config(config_dict: Mapping[str, Any]) -> PeftConfig:
    """Return the config that a dictionary describes, of the kind that its `peft_type` names."""
    return PeftConfig.from_peft_type(**config_dict)


def transpose(weight: Tensor, fan_in_fan_out: bool) -> Tensor:
    """Return the weight, transposed if it lies as [I, O]."""
    if not fan_in_fan_out:
        return weight
    return nn.Parameter(weight.t()) if isinstance(weight, nn.Parameter) else weight.t()


class BufferDict(nn.Module):
    """Buffers by name, where `torch.nn.ParameterDict` holds parameters."""

    def __init__(self, buffers: Mapping[str, Tensor] | None = None, persistent: bool = False) -> None:
        super().__init__()
        self.persistent = persistent
        self.update(buffers or {})

    def update(self, buffers: Mapping[str, Tensor]) -> None:
        """Add these buffers, over those of the same names."""
        for name, tensor in buffers.items():
            self[name] = tensor

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor, persistent=self.persistent)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._buffers:
            raise KeyError(name)
        return self._buffers[name]  # type: ignore[return-value]

    def __delitem__(self, name: str) -> None:
        del self._buffers[name]

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def __contains__(self, name: str) -> bool:
        return name in self._buffers

    def keys(self) -> Any:
        """Return the names."""
        return self._buffers.keys()

    def items(self) -> Any:
        """Return the names with their buffers."""
        return self._buffers.items()

    def values(self) -> Any:
        """Return the buffers."""
        return self._buffers.values()


def skip_init_on_device(func: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return `func` as it is: layers here are made without values that are overwritten anyway."""
    return func


def fsdp_auto_wrap_policy(model: nn.Module) -> Callable[..., bool]:
    """Return a policy that gives every trained leaf, and every block of the base, an FSDP unit of its own."""
    names = set(getattr(model, "_no_split_modules", None) or ())

    def policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        if recurse:
            return True
        leaf = not list(module.children()) and getattr(module, "weight", None) is not None
        trains = leaf and any(parameter.requires_grad for parameter in module.parameters())
        return trains or type(module).__name__ in names

    return functools.partial(policy)
