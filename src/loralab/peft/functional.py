"""PEFT's functional interface."""

from loralab.adapters.functional import (
    cast_adapter_dtype,
    delete_adapter,
    inject_adapter_in_model,
    set_adapter,
    set_requires_grad,
)
from loralab.adapters.state_dict import (
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)

__all__ = [
    "cast_adapter_dtype",
    "delete_adapter",
    "get_peft_model_state_dict",
    "inject_adapter_in_model",
    "set_adapter",
    "set_peft_model_state_dict",
    "set_requires_grad",
]
