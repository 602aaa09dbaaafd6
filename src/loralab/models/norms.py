"""Normalizations of a frozen base that keep less for the backward pass."""

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.norm import rms_norm

__all__ = ["set_lean_norms"]

_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def set_lean_norms(model: nn.Module) -> int:
    """Let the model's frozen RMS norms compute as `rms_norm` does; return how many do.

    Which modules these are is tried on each class: what gives other numbers is left as it is.
    """
    count = 0
    verdicts: dict[type, bool] = {}
    for module in model.modules():
        eps = _eps(module)
        if eps is None:
            continue
        kind = type(module)
        if kind not in verdicts:
            verdicts[kind] = _is_rms_norm(module, eps)
        if verdicts[kind]:
            module.forward = partial(_forward, module)
            count += 1
    return count


def _eps(module: Any) -> float | None:
    """Return a candidate's epsilon: a module of one frozen vector that is called an RMS norm."""
    weight = module._parameters.get("weight")
    takes = list(inspect.signature(type(module).forward).parameters)
    if (
        "RMSNorm" not in type(module).__name__
        or len(takes) != 2
        or list(module._parameters) != ["weight"]
        or weight is None
    ):
        return None
    if (
        weight.ndim != 1
        or weight.requires_grad
        or weight.dtype not in _TOLERANCE
        or "forward" in module.__dict__
    ):
        return None
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return eps if isinstance(eps, float) else None


@torch.no_grad()
def _is_rms_norm(module: Any, eps: float) -> bool:
    generator = torch.Generator().manual_seed(0)
    weight = module.weight
    x = (torch.randn(3, len(weight), generator=generator) * torch.tensor([[1e-3], [1.0], [30.0]])).to(weight)
    try:
        expected = module(x)
    except (TypeError, ValueError, RuntimeError):
        return False
    ours = rms_norm(x, weight, eps)
    if not isinstance(expected, Tensor) or expected.dtype != ours.dtype or expected.shape != ours.shape:
        return False
    return torch.allclose(ours.float(), expected.float(), rtol=_TOLERANCE[weight.dtype], atol=1e-6)


def _forward(module: Any, hidden_states: Tensor) -> Tensor:
    if module.weight.requires_grad:
        result: Tensor = type(module).forward(module, hidden_states)
        return result
    eps: float = getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))
    return rms_norm(hidden_states, module.weight, eps)
