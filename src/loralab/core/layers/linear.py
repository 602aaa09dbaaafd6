"""LoRA over `torch.nn.Linear`."""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, nn

from loralab.core.algebra import joined
from loralab.core.function import lora_linear, low_rank
from loralab.core.layers.base import Activation, LoraLayer

LINEAR = True


def matches(module: nn.Module) -> bool:
    """A linear layer that computes what `nn.Linear` computes.

    `nn.MultiheadAttention` reads the weight of its `out_proj` and never calls it: an adapter there would do
    nothing.
    """
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    )


class LinearLike(LoraLayer):
    """A layer whose base computes x W^T + bias for a weight that it can show as [O, I]."""

    def __init__(self, base_layer: nn.Module, activation: Activation) -> None:
        super().__init__(base_layer, activation)
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.out_features, self.in_features = self.matrix(self.weight).shape

    def matrix(self, weight: Tensor) -> Tensor:
        return weight

    def unmatrix(self, matrix_OI: Tensor) -> Tensor:
        return matrix_OI

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, self.in_features), (self.out_features, rank)

    def _create(self, name: str, rank: int, lora_bias: bool, device: str | None) -> None:
        self.lora_A[name] = nn.Linear(self.in_features, rank, bias=False, device=device)
        self.lora_B[name] = nn.Linear(rank, self.out_features, bias=lora_bias, device=device)

    def _adapted(self, names: Sequence[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One function computes the base and the plain adapters, where nothing stands between them."""
        fused = [n for n in names if self.variants[n] == "plain" and self.lora_B[n].bias is None]
        if len(fused) < len(names) or _is_hooked(self.base_layer):
            return super()._adapted(names, x, *args, **kwargs)
        by_dropout: dict[float, list[str]] = {}
        for name in names:
            by_dropout.setdefault(self.dropout_of(name), []).append(name)
        (dropout, first), *others = by_dropout.items()
        output = lora_linear(x, self.matrix(self.weight), self.bias, self._joined(first), dropout)
        for dropout, group in others:
            output = output + low_rank(x, self._joined(group), dropout)
        return output

    def _low(self, name: str, x: Tensor) -> Tensor:
        low = low_rank(x, self._joined([name]), self.dropout_of(name))
        bias = self.lora_B[name].bias
        return low if bias is None else low + bias.to(low.dtype) * self.scaling[name]  # type: ignore[operator]

    def _joined(self, names: Sequence[str]) -> tuple[Tensor, Tensor, float]:
        return joined([(*self.factors(name), self.scaling[name]) for name in names])


def _is_hooked(module: nn.Module) -> bool:
    """Return whether calling `module` does more than its class's forward, such as moving its weight."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


@final
class Layer(LinearLike):
    """h = W x + bias + scaling * B A x."""
