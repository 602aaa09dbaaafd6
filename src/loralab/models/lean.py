"""Modules of a model that are given another forward, which computes the same and keeps less."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

__all__ = ["replace_forward"]


def replace_forward(
    model: nn.Module,
    candidate: Callable[[Any], bool],
    agrees: Callable[[Any], bool],
    forward: Callable[[Any, Tensor], Tensor],
) -> int:
    """Let the candidates among a model's modules compute with `forward`; return how many do.

    Whether it computes what they do is tried on the first of each class: if not, the class is left as it is.
    """
    count = 0
    verdicts: dict[type, bool] = {}
    for module in model.modules():
        if "forward" in module.__dict__ or not candidate(module):
            continue
        kind = type(module)
        if kind not in verdicts:
            verdicts[kind] = agrees(module)
        if verdicts[kind]:
            module.forward = partial(forward, module)
            count += 1
    return count
