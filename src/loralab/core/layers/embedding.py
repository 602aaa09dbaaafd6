"""LoRA over `torch.nn.Embedding`: a looked-up row of A, times B."""

from collections.abc import Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loralab.core.layers.base import Activation, LoraLayer, joined, product
from loralab.errors import TargetError

LINEAR = False


def matches(module: nn.Module) -> bool:
    """Any embedding; one that scales its output by `embed_scale` is understood."""
    return isinstance(module, nn.Embedding)


@final
class Layer(LoraLayer):
    """h = (W[id] + scaling * B A[:, id]) * embed_scale. O is the width, I the vocabulary. No dropout."""

    factor_names = ("lora_embedding_A", "lora_embedding_B")
    lookup = True

    def __init__(self, base_layer: nn.Embedding, activation: Activation) -> None:
        super().__init__(base_layer, activation)
        if base_layer.max_norm is not None:
            raise TargetError(
                "an embedding with max_norm rewrites its rows as it is used; no adapter can be exact over it."
            )
        self.lora_embedding_A = nn.ParameterDict()
        self.lora_embedding_B = nn.ParameterDict()
        self.in_features, self.out_features = base_layer.num_embeddings, base_layer.embedding_dim

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, self.in_features), (self.out_features, rank)

    def _create(self, name: str, rank: int, device: str | None) -> None:
        self.lora_embedding_A[name] = nn.Parameter(torch.randn(rank, self.in_features, device=device))
        self.lora_embedding_B[name] = nn.Parameter(torch.randn(self.out_features, rank, device=device))

    def _adapted(self, names: Sequence[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.base_layer(x, *args, **kwargs)
        a_RI, b_OR, scaling = joined([self.factors(n) for n in names], [self.scaling[n] for n in names])
        base: nn.Embedding = self.base_layer  # type: ignore[assignment]
        rows_BTR = F.embedding(x, a_RI.t(), base.padding_idx, sparse=base.sparse)
        low = (rows_BTR @ b_OR.t()) * scaling
        embed_scale = getattr(base, "embed_scale", None)
        if embed_scale is not None:
            low = low * embed_scale
        return output + low.to(output.dtype)

    def delta(self, name: str) -> Tensor:
        return product(*self.factors(name), self.scaling[name]).t()
