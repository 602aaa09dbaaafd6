"""Which device and which precision to compute in, and what the CPU's kernels may take."""

import os

import torch

from loralab.errors import ConfigError

__all__ = ["DTYPES", "choose_device", "choose_dtype", "keep_few_kernels"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device() -> torch.device:
    """Return the first accelerator that torch sees, or the CPU."""
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return torch.device("cpu")


_WIDE = 512
"""On a CPU, below this width bfloat16's products cost more to set up than they save."""


def choose_dtype(name: str, device: torch.device, width: int = _WIDE) -> torch.dtype:
    """Return the dtype called `name` for a model of hidden size `width`.

    "auto" is bfloat16 where the device has it in hardware and the model is wide enough to gain from it, else
    float32.

    Raises:
        ConfigError: no dtype of that name, or one that the device cannot train in.
    """
    if name == "auto":
        return torch.bfloat16 if _gains_from_bf16(device, width) else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}; expected auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def _gains_from_bf16(device: torch.device, width: int) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return bool(native) and width >= _WIDE
    return False


_KERNELS = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
"""By which torch, and oneDNN that makes its products on a CPU, are told how many kernels to keep."""
_KEPT = 128
"""More than a layer needs for a micro-batch: its backward pass has a few for each length of document."""


def keep_few_kernels() -> None:
    """Let half-precision products on a CPU keep the kernels of the latest sizes alone.

    oneDNN makes one for each size of matrices, and both it and torch keep 1,024 of them, at half a megabyte:
    a run whose micro-batches have many lengths would fill its memory with them, though to make one anew
    takes less time than to touch new memory for it. What the user has set stays. It has to be called before
    the first such product of the process, and then holds for all.
    """
    for name in _KERNELS:
        os.environ.setdefault(name, str(_KEPT))
