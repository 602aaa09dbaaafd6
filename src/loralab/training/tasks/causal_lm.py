"""Next-token prediction on packed text.

Shape key: B rows, T tokens of a row, K kept positions, N trained tokens, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loralab.core.loss import head_loss
from loralab.data.batch import Isolation, collate
from loralab.data.types import Example
from loralab.training.tasks.head import plain_head, taken_aside

__all__ = ["CausalLM"]


@dataclass(frozen=True)
class CausalLM:
    """The loss is the weighted sum of -log p(token | the tokens before it in its example)."""

    pad_id: int
    isolation: Isolation
    device: torch.device
    dtype: torch.dtype
    direct: bool = False
    """Whether the model's scores are those of its head and nothing more, see `head_is_last`."""

    def weight(self, example: Example) -> float:
        """Return the sum of the example's loss weights."""
        return sum(example.weights)

    def size(self, example: Example) -> int:
        """Return the example's tokens."""
        return len(example.ids)

    def loss(self, model: Any, examples: Sequence[Example]) -> Tensor:
        """Return the weighted sum of the token losses.

        Only positions whose next token has a weight reach the output head: columns in which no row has one
        are left out by the model itself, where its forward takes `logits_to_keep`. Where the head is a plain
        linear layer, its scores are made and used up a few tokens at a time.
        """
        batch = collate(examples, self.pad_id, self.isolation).to(self.device)
        targets_BK, weights_BK = batch.input_ids_BT[:, 1:], batch.weights_BT[:, 1:]
        inputs = batch.model_inputs(self.isolation, self.dtype) | {"use_cache": False}
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        if keeps:
            kept_K = weights_BK.any(0).nonzero().squeeze(1)
            inputs["logits_to_keep"] = kept_K
            targets_BK, weights_BK = targets_BK[:, kept_K], weights_BK[:, kept_K]
        trained_BK = weights_BK != 0
        targets_N, weights_N = targets_BK[trained_BK], weights_BK[trained_BK]
        found = plain_head(model) if self.direct else None
        if found is None:
            logits_BKV = _kept(model(**inputs).logits, keeps)
            losses_N = F.cross_entropy(logits_BKV[trained_BK].float(), targets_N, reduction="none")
            return (losses_N * weights_N).sum()
        parent, name, head = found
        with taken_aside(parent, name) as aside:
            model(**inputs)
        hidden_NI = _kept(aside.hidden_BKI, keeps)[trained_BK]
        return head_loss(hidden_NI, head.weight, head.bias, targets_N, weights_N)


def _kept(values: Tensor, keeps: bool) -> Tensor:
    """Return the positions that have a next token."""
    return values if keeps else values[:, :-1]
