"""Feed-forward layers with a gate that keep less for the backward pass."""

from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.gated import silu_gated
from loralab.models.lean import replace_forward

__all__ = ["set_lean_gates"]

_PARTS = {"gate_proj", "up_proj", "down_proj"}


def set_lean_gates(model: nn.Module) -> int:
    """Let the model's feed-forward layers compute with `silu_gated`; return how many do."""
    return replace_forward(model, _has_the_parts, _is_silu_gated, _forward)


def _has_the_parts(module: Any) -> bool:
    return bool(module._modules.keys() >= _PARTS)


@torch.no_grad()
def _is_silu_gated(module: Any) -> bool:
    was_training = module.training
    module.eval()
    try:
        weight = next(p for p in module.parameters() if p.is_floating_point())
        x = torch.randn(3, module.gate_proj.in_features, generator=torch.Generator().manual_seed(0)).to(
            weight
        )
        expected, ours = module(x), _forward(module, x)
    except (AttributeError, StopIteration, TypeError, ValueError, RuntimeError):
        return False
    finally:
        module.train(was_training)
    return isinstance(expected, Tensor) and torch.equal(ours, expected)


def _forward(module: Any, x: Tensor) -> Tensor:
    result: Tensor = module.down_proj(silu_gated(module.gate_proj(x), module.up_proj(x)))
    return result
