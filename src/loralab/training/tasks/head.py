"""A model's output head, taken aside, so that its scores need not all be made.

Shape key: B rows, K kept positions, I width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Aside", "head_is_last", "plain_head", "taken_aside"]


class Aside(nn.Module):
    """Stands in the place of a head, keeps what it was given and hands it on."""

    hidden_BKI: Tensor

    def forward(self, hidden_BKI: Tensor) -> Tensor:
        """Return the input itself; what the model makes of it is not used."""
        self.hidden_BKI = hidden_BKI
        return hidden_BKI


def plain_head(model: nn.Module) -> tuple[nn.Module, str, nn.Linear] | None:
    """Return (its parent, its name, the output head), if it is a linear layer and no adapter is on it."""
    finder = getattr(model, "get_output_embeddings", None)
    head = finder() if callable(finder) else None
    if type(head) is not nn.Linear or head._forward_hooks or head._forward_pre_hooks:
        return None
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is head:
                return parent, name, head
    return None


@contextmanager
def taken_aside(parent: nn.Module, name: str) -> Iterator[Aside]:
    """Within the block an `Aside` stands in the place of the head."""
    head = getattr(parent, name)
    aside = Aside()
    setattr(parent, name, aside)
    try:
        yield aside
    finally:
        setattr(parent, name, head)


@torch.no_grad()
def head_is_last(model: Any, vocabulary: int, device: torch.device) -> bool:
    """Return whether the model's scores are W h + b and nothing more, tried on the model itself.

    Some models scale or bend the scores behind the head.
    """
    found = plain_head(model)
    if found is None:
        return False
    parent, name, head = found
    was_training = model.training
    model.eval()
    try:
        ids_BT = torch.arange(8, device=device).remainder(vocabulary)[None]
        expected = model(input_ids=ids_BT, use_cache=False).logits
        with taken_aside(parent, name) as aside:
            model(input_ids=ids_BT, use_cache=False)
        scores = nn.functional.linear(aside.hidden_BKI, head.weight, head.bias)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False
    finally:
        model.train(was_training)
    return scores.shape == expected.shape and torch.allclose(scores, expected, rtol=1e-3, atol=1e-3)
