"""Products with a weight, by the library that is fast at them on this processor.

Shape key: T tokens, I in, O out.
"""

import functools
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["add_times_", "times"]

_FEW = 8


def times(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Return x W^T + b, [T, O]; for x W hand in W's transpose.

    In float32, torch asks MKL, which on AMD's processors has less than half the speed of oneDNN. The two
    round differently.
    """
    if _by_onednn(x_TI):
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, bias_O, "none", [], "")
        return result
    return F.linear(x_TI, weight_OI, bias_O)


def add_times_(out_TO: Tensor, x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """Add x W^T to `out_TO`, in place, and return it."""
    if _by_onednn(x_TI):
        return out_TO.add_(times(x_TI, weight_OI))
    return out_TO.addmm_(x_TI, weight_OI.t())


def _by_onednn(x_TI: Tensor) -> bool:
    return (
        x_TI.dtype == torch.float32
        and x_TI.device.type == "cpu"
        and len(x_TI) >= _FEW
        and not torch.compiler.is_compiling()
        and _mkl_is_slow()
    )


@functools.cache
def _mkl_is_slow() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf8") if cpuinfo.exists() else platform.processor()
    return (
        "AuthenticAMD" in text
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
