"""Which of the packages that PEFT asks for are installed."""

from importlib.util import find_spec

import torch

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


def is_bnb_available() -> bool:
    """Return whether bitsandbytes is installed."""
    return find_spec("bitsandbytes") is not None


def is_bnb_4bit_available() -> bool:
    """Return whether bitsandbytes is installed; every release that is read has 4 bits."""
    return is_bnb_available()


def is_torchao_available() -> bool:
    """Return whether torchao is installed."""
    return find_spec("torchao") is not None


def is_diffusers_available() -> bool:
    """Return whether diffusers is installed."""
    return find_spec("diffusers") is not None


def is_gptqmodel_available() -> bool:
    """Return whether gptqmodel is installed."""
    return find_spec("gptqmodel") is not None


def is_optimum_available() -> bool:
    """Return whether optimum is installed."""
    return find_spec("optimum") is not None


def is_aqlm_available() -> bool:
    """Return whether aqlm is installed."""
    return find_spec("aqlm") is not None


def is_eetq_available() -> bool:
    """Return whether eetq is installed."""
    return find_spec("eetq") is not None


def is_hqq_available() -> bool:
    """Return whether hqq is installed."""
    return find_spec("hqq") is not None


def is_inc_available() -> bool:
    """Return whether Intel's neural_compressor is installed."""
    return find_spec("neural_compressor") is not None


def is_te_available() -> bool:
    """Return whether transformer_engine is installed."""
    return find_spec("transformer_engine") is not None


def is_te_pytorch_available() -> bool:
    """Return whether transformer_engine is installed; its part for torch comes with it."""
    return is_te_available()


def is_torch_tpu_available(check_device: bool = True) -> bool:
    """Return whether torch_xla is installed."""
    return find_spec("torch_xla") is not None


def is_xpu_available(check_device: bool = False) -> bool:
    """Return whether torch finds an Intel GPU."""
    return torch.xpu.is_available()
