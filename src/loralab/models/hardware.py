"""Which device and which precision to compute in."""

import torch

from loralab.errors import ConfigError

__all__ = ["DTYPES", "choose_device", "choose_dtype"]

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
