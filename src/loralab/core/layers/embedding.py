"""LoRA over `torch.nn.Embedding`: a looked-up row of A, times B."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loralab.core.config import LoraConfig
from loralab.core.layers.activation import Activation
from loralab.core.layers.base import LoraLayer
from loralab.errors import TargetError

LINEAR = False


def matches(module: nn.Module) -> bool:
    """Any embedding; one that scales its output by `embed_scale` is understood."""
    return isinstance(module, nn.Embedding) and "weight" in module._parameters


@final
class Layer(LoraLayer):
    """h = (W[id] + scaling * B A[:, id]) * embed_scale. O is the width, I the vocabulary. No dropout."""

    peft_name = "Embedding"
    adapter_layer_names = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
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

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.t()

    def unmatrix(self, matrix_OI: Tensor) -> Tensor:
        return matrix_OI.t()

    def _check(self, name: str, config: LoraConfig) -> None:
        if config.lora_bias:
            raise TargetError(
                "lora_bias: an embedding has no bias to add to; leave it out, or exclude the module."
            )

    def _create(self, name: str, rank: int, lora_bias: bool, device: str | None) -> None:
        self.lora_embedding_A[name] = nn.Parameter(torch.randn(rank, self.in_features, device=device))
        self.lora_embedding_B[name] = nn.Parameter(torch.randn(self.out_features, rank, device=device))

    def _low(self, name: str, x: Tensor) -> Tensor:
        base: nn.Embedding = self.base_layer  # type: ignore[assignment]
        a_RI, b_OR = self.factors(name)
        rows_BTR = F.embedding(x, a_RI.t(), base.padding_idx, sparse=base.sparse)
        low = (rows_BTR @ b_OR.t()) * self.scaling[name]
        embed_scale = getattr(base, "embed_scale", None)
        return low if embed_scale is None else low * embed_scale
