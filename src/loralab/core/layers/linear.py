"""LoRA over `torch.nn.Linear`."""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, nn

from loralab.core.function import lora_linear, low_rank
from loralab.core.layers.base import Activation, LoraLayer, joined, product

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
        self.out_features, self.in_features = self.weight_OI().shape

    def weight_OI(self) -> Tensor:
        """Return the base weight as [O, I], a view of it."""
        return self.weight

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, self.in_features), (self.out_features, rank)

    def _create(self, name: str, rank: int, device: str | None) -> None:
        self.lora_A[name] = nn.Linear(self.in_features, rank, bias=False, device=device)
        self.lora_B[name] = nn.Linear(rank, self.out_features, bias=False, device=device)

    def _adapted(self, names: Sequence[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        by_dropout: dict[float, list[str]] = {}
        for name in names:
            by_dropout.setdefault(self.dropout_of(name), []).append(name)
        groups = [(self._joined(group), dropout) for dropout, group in by_dropout.items()]
        if _is_hooked(self.base_layer):
            output: Tensor = self.base_layer(x, *args, **kwargs)
        else:
            (first, dropout), *groups = groups
            output = lora_linear(x, self.weight_OI(), self.bias, first, dropout)
        for factors, dropout in groups:
            output = output + low_rank(x, factors, dropout)
        return output

    def _joined(self, names: Sequence[str]) -> tuple[Tensor, Tensor, float]:
        return joined([self.factors(n) for n in names], [self.scaling[n] for n in names])

    def delta(self, name: str) -> Tensor:
        return product(*self.factors(name), self.scaling[name])


def _is_hooked(module: nn.Module) -> bool:
    """Return whether calling `module` does more than its class's forward, such as moving its weight."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


@final
class Layer(LinearLike):
    """h = W x + bias + scaling * B A x."""
