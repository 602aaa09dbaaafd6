"""LoRA over the output projection of `torch.nn.MultiheadAttention`, whose weight is read, never called."""

from typing import Any, final

from torch import Tensor, nn

from loralab.core.layers.effective import EffectiveLayer

LINEAR = False


def matches(module: nn.Module) -> bool:
    """The class that torch gives this projection, and no other module."""
    return isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


@final
class Layer(EffectiveLayer):
    """A linear layer whose `weight` is W + scaling * B A while adapters run."""

    refuses_dropout = False

    @property
    def weight(self) -> Any:
        """The weight that the attention is to compute with."""
        return self.effective_weight()

    @property
    def bias(self) -> Any:
        """The bias that the attention is to compute with."""
        bias = super().bias
        return bias if bias is None else self._lowered(bias)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return nn.functional.linear(x, self.effective_weight(), self.bias)
