"""Normalizations of a frozen base that keep less for the backward pass."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.norm import rms_norm
from loralab.models.lean import replace_forward

__all__ = ["set_lean_norms"]

_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def set_lean_norms(model: nn.Module) -> int:
    """Let the model's frozen RMS norms compute as `rms_norm` does; return how many do."""
    return replace_forward(model, _may_be_rms_norm, _is_rms_norm, _forward)


def _may_be_rms_norm(module: Any) -> bool:
    """Return whether a module of one frozen vector is called an RMS norm, and takes x and no gate."""
    weight = module._parameters.get("weight")
    takes = inspect.signature(type(module).forward).parameters  # with itself
    return (
        "RMSNorm" in type(module).__name__
        and len(takes) == 2
        and list(module._parameters) == ["weight"]
        and weight is not None
        and weight.ndim == 1
        and not weight.requires_grad
        and weight.dtype in _TOLERANCE
        and isinstance(_eps(module), float)
    )


def _eps(module: Any) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


@torch.no_grad()
def _is_rms_norm(module: Any) -> bool:
    generator = torch.Generator().manual_seed(0)
    weight = module.weight
    x = (torch.randn(3, len(weight), generator=generator) * torch.tensor([[1e-3], [1.0], [30.0]])).to(weight)
    try:
        expected = module(x)
    except (TypeError, ValueError, RuntimeError):
        return False
    ours = _forward(module, x)
    if not isinstance(expected, Tensor) or expected.dtype != ours.dtype or expected.shape != ours.shape:
        return False
    return torch.allclose(ours.float(), expected.float(), rtol=_TOLERANCE[weight.dtype], atol=1e-6)


def _forward(module: Any, hidden_states: Tensor) -> Tensor:
    eps = _eps(module)
    if eps is None or module.weight.requires_grad:
        result: Tensor = type(module).forward(module, hidden_states)
        return result
    return rms_norm(hidden_states, module.weight, eps)
