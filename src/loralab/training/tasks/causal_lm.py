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

from loralab.data.batch import Isolation, collate
from loralab.data.types import Example

__all__ = ["CausalLM"]


@dataclass(frozen=True)
class CausalLM:
    """The loss is the weighted sum of -log p(token | the tokens before it in its example)."""

    pad_id: int
    isolation: Isolation
    device: torch.device
    dtype: torch.dtype

    def weight(self, example: Example) -> float:
        """Return the sum of the example's loss weights."""
        return sum(example.weights)

    def size(self, example: Example) -> int:
        """Return the example's tokens."""
        return len(example.ids)

    def loss(self, model: Any, examples: Sequence[Example]) -> Tensor:
        """Return the weighted sum of the token losses.

        Only positions whose next token has a weight reach the output head: columns in which no row has one
        are left out by the model itself, where its forward takes `logits_to_keep`.
        """
        batch = collate(examples, self.pad_id, self.isolation).to(self.device)
        targets_BT, weights_BT = batch.input_ids_BT[:, 1:], batch.weights_BT[:, 1:]
        inputs = batch.model_inputs(self.isolation, self.dtype) | {"use_cache": False}
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            kept_K = weights_BT.any(0).nonzero().squeeze(1)
            logits_BKV = model(**inputs, logits_to_keep=kept_K).logits
            targets_BT, weights_BT = targets_BT[:, kept_K], weights_BT[:, kept_K]
        else:
            logits_BKV = model(**inputs).logits[:, :-1]
        trained_BK = weights_BT != 0
        losses_N = F.cross_entropy(logits_BKV[trained_BK].float(), targets_BT[trained_BK], reduction="none")
        return (losses_N * weights_BT[trained_BK]).sum()
