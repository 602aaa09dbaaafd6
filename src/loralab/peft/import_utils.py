"""PEFT's names of what is installed."""

from loralab.adapters.available import (
    is_aqlm_available,
    is_bnb_4bit_available,
    is_bnb_available,
    is_diffusers_available,
    is_eetq_available,
    is_gptqmodel_available,
    is_hqq_available,
    is_inc_available,
    is_optimum_available,
    is_te_available,
    is_te_pytorch_available,
    is_torch_tpu_available,
    is_torchao_available,
    is_xpu_available,
)

__all__ = [
    "is_aqlm_available",
    "is_bnb_4bit_available",
    "is_bnb_available",
    "is_diffusers_available",
    "is_eetq_available",
    "is_gptqmodel_available",
    "is_hqq_available",
    "is_inc_available",
    "is_optimum_available",
    "is_te_available",
    "is_te_pytorch_available",
    "is_torch_tpu_available",
    "is_torchao_available",
    "is_xpu_available",
]
