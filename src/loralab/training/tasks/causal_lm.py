"""Next-token prediction on packed text.

Shape key: B rows, T tokens of a row, K kept positions, N trained tokens, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loralab.core.loss import head_loss
from loralab.data.batch import Batch, Isolation, collate_parts
from loralab.data.types import Example
from loralab.training.tasks import Joint
from loralab.training.tasks.head import plain_head, taken_aside
from loralab.training.tasks.noise import noisy_embeddings

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
    label_smoothing: float = 0.0
    """Share of the target that is spread over the vocabulary, in training."""
    neftune_alpha: float = 0.0
    """Noise on the embeddings, in training."""

    def weight(self, example: Example) -> float:
        """Return the sum of the example's loss weights."""
        return sum(example.weights)

    def size(self, example: Example) -> int:
        """Return the example's tokens."""
        return len(example.ids)

    def loss(self, model: Any, examples: Sequence[Example]) -> Tensor:
        """Return the weighted sum of the token losses."""
        return self._losses(model, self.join([examples]), spans=False)[0]

    def join(self, parts: Sequence[Sequence[Example]]) -> Joint:
        """Return the examples of several runs as one batch."""
        batch, counts = collate_parts(parts, self.pad_id, self.isolation)
        trained = [sum(example.trained for example in part) for part in parts]
        return Joint(batch.to(self.device), counts, trained, self.isolation == "documents")

    def losses(self, model: Any, joint: Joint) -> list[Tensor]:
        """Return each run's weighted sum of the token losses, within `LoraModel.rows` of the joint batch."""
        return self._losses(model, joint, spans=joint.one_row)

    def _losses(self, model: Any, joint: Joint, *, spans: bool) -> list[Tensor]:
        """Return each run's weighted sum of the token losses.

        Only positions whose next token has a weight reach the output head: columns in which no row has one
        are left out by the model itself, where its forward takes `logits_to_keep`. Where the head is a plain
        linear layer, its scores are made and used up a few tokens at a time. A head with adapters that are
        told apart by `spans` of tokens has to see all of them.
        """
        batch: Batch = joint.batch
        targets_BK, weights_BK = batch.input_ids_BT[:, 1:], batch.weights_BT[:, 1:]
        inputs = batch.model_inputs(self.isolation, self.dtype) | {"use_cache": False}
        plain = plain_head(model)
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        keeps = keeps and not (spans and plain is None)
        if keeps:
            kept_K = weights_BK.any(0).nonzero().squeeze(1)
            inputs["logits_to_keep"] = kept_K
            targets_BK, weights_BK = targets_BK[:, kept_K], weights_BK[:, kept_K]
        trained_BK = weights_BK != 0
        # The first token of an example is not trained, so what is trained stands run by run.
        each = list(joint.trained)
        targets, weights = targets_BK[trained_BK].split(each), weights_BK[trained_BK].split(each)
        smoothing = self.label_smoothing if model.training else 0.0
        if plain is None or not self.direct:
            with self._noise(model, batch):
                logits_NV = _kept(model(**inputs).logits, keeps)[trained_BK]
            return [
                (
                    F.cross_entropy(own.float(), target, reduction="none", label_smoothing=smoothing) * weight
                ).sum()
                for own, target, weight in zip(logits_NV.split(each), targets, weights, strict=True)
            ]
        parent, name, head = plain
        with taken_aside(parent, name) as aside, self._noise(model, batch):
            model(**inputs)
        hidden_NI = _kept(aside.hidden_BKI, keeps)[trained_BK]
        return [
            head_loss(own, head.weight, head.bias, target, weight, smoothing)
            for own, target, weight in zip(hidden_NI.split(each), targets, weights, strict=True)
        ]

    def _noise(self, model: Any, batch: Batch) -> AbstractContextManager[None]:
        if not (self.neftune_alpha and model.training):
            return nullcontext()
        return noisy_embeddings(model, self.neftune_alpha, batch.documents_BT)


def _kept(values: Tensor, keeps: bool) -> Tensor:
    """Return the positions that have a next token."""
    return values if keeps else values[:, :-1]
