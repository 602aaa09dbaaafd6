"""PEFT's names of small helpers."""

from loralab.adapters.helpers import (
    DoraCaching,
    check_if_peft_model,
    disable_input_dtype_casting,
    rescale_adapter_scale,
    update_forward_signature,
    update_generate_signature,
    update_signature,
)
from loralab.peft.others import (
    find_kappa_target_modules,
)

__all__ = [
    "DoraCaching",
    "check_if_peft_model",
    "disable_input_dtype_casting",
    "find_kappa_target_modules",
    "rescale_adapter_scale",
    "update_forward_signature",
    "update_generate_signature",
    "update_signature",
]
