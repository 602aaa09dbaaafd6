"""LoRA over transformers' `Conv1D`, the linear layer of GPT-2, which keeps its weight as [in, out]."""

from typing import final

from torch import Tensor, nn

from loralab.core.layers.linear import LinearLike

LINEAR = True


def matches(module: nn.Module) -> bool:
    """Known by its name, so that `core` needs no transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "weight")


@final
class Layer(LinearLike):
    """h = x W + bias + scaling * B A x, with W stored as [I, O]; A and B lie as in a plain linear layer."""

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.t()

    def unmatrix(self, matrix_OI: Tensor) -> Tensor:
        return matrix_OI.t()
