"""Base models whose linear layers are kept in 4 or 8 bits, by bitsandbytes."""

import logging
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from loralab.errors import ConfigError, did_you_mean

__all__ = ["QUANTIZATIONS", "quantization", "spare_odd_shapes"]

QUANTIZATIONS = ("nf4", "int8")


def quantization(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return how transformers is to quantize a model that computes in `dtype`.

    "nf4" is QLoRA's 4 bits with quantized scales (Dettmers et al. 2023, arXiv 2305.14314), "int8" is
    LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339).

    Raises:
        ConfigError: no quantization of that name, or bitsandbytes is not installed.
    """
    if kind not in QUANTIZATIONS:
        raise ConfigError(
            f"quantize is {kind!r}; expected {' or '.join(QUANTIZATIONS)}.{did_you_mean(kind, QUANTIZATIONS)}"
        )
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"quantize={kind!r} needs bitsandbytes: pip install 'loralab[quant]'.")
    # At every product it says that int8 rounds its input, and on import which kernels a CPU could have.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def spare_odd_shapes(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights that its faster layout has no room for.

    On CPUs with bf16 instructions it repacks at the first call in evaluation mode, and fails an assertion of
    its own where the outputs are no multiple of 32 or the inputs none of the block size.
    """
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if getattr(module, "support_avx512bf16_for_cpu", False):
            rows, columns = module.weight.quant_state.shape
            if rows % 32 or columns % module.weight.blocksize:
                module.support_avx512bf16_for_cpu = False
