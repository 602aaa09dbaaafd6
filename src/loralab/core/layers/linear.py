"""LoRA over `torch.nn.Linear`."""

from collections.abc import Hashable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from loralab.core.algebra import joined
from loralab.core.function import Base, Segment, lora_linears, low_rank, low_rank_rows
from loralab.core.layers.activation import Activation
from loralab.core.layers.base import LoraLayer
from loralab.core.layers.together import Together

LINEAR = True


def matches(module: nn.Module) -> bool:
    """A linear layer that computes what `nn.Linear` computes.

    `nn.MultiheadAttention` reads the weight of its `out_proj` and never calls it: an adapter there would do
    nothing. torchao keeps the class and makes the weight one of its own.
    """
    return (
        isinstance(module, nn.Linear)
        and "weight" in module._parameters  # not made anew from other parameters, as by weight_norm
        and type(module).forward is nn.Linear.forward
        and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
        and not type(module.weight).__module__.startswith("torchao.")
    )


class _Linear(nn.Linear):
    """A factor whose numbers are set right after it is made, so that there are none before."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)

    @property
    def in_features(self) -> int:  # type: ignore[override]
        """The weight's second size."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:  # type: ignore[override]
        """The weight's first size."""
        return self.weight.shape[0]


class LinearLike(LoraLayer):
    """A layer whose base computes x W^T + bias for a weight that it can show as [O, I]."""

    peft_name = "Linear"
    adapter_layer_names = ("lora_A", "lora_B", "lora_magnitude_vector")
    fused = True
    """Whether one function can compute base and adapters: it needs the weight as numbers."""
    together: Together | None = None
    """The layers that read the same input."""

    def __init__(self, base_layer: nn.Module, activation: Activation) -> None:
        super().__init__(base_layer, activation)
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.out_features, self.in_features = self._sizes()

    def _sizes(self) -> tuple[int, int]:
        """Return (O, I)."""
        rows, columns = self.matrix(self.weight).shape
        return rows, columns

    def matrix(self, weight: Tensor) -> Tensor:
        return weight

    def unmatrix(self, matrix_OI: Tensor) -> Tensor:
        return matrix_OI

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, self.in_features), (self.out_features, rank)

    def _create(self, name: str, rank: int, lora_bias: bool, device: str | None) -> None:
        if device is None:
            self.lora_A[name] = nn.Linear(self.in_features, rank, bias=False)
            self.lora_B[name] = nn.Linear(rank, self.out_features, bias=lora_bias)
        else:
            self.lora_A[name], self.lora_B[name] = _Linear(), _Linear()

    def bases(self) -> Base:
        """Return the weight as [O, I] and the bias."""
        return self.matrix(self.weight), self.bias

    def segments(self) -> list[Segment] | None:
        """Return what the layer adds now; None where base and adapters cannot be one function.

        That is so where something stands between them, or where adapters drop differently.
        """
        if not self.fused or self._merged or _is_hooked(self.base_layer):
            return None
        found = []
        for names, tokens in self._activation.pieces():
            own = [name for name in names if name in self.r]
            dropouts = {self.dropout_of(name) for name in own}
            if len(dropouts) > 1 or any(not self._is_plain(name) for name in own):
                return None
            found.append(Segment((self._joined(own),) if own else (), sum(dropouts), tokens))
        return found

    def stamp(self) -> Hashable:
        """Return what changes with the adapters that run and with every tensor behind the output."""
        active = self._activation
        names = active.running if active.rows is None else active.rows
        own = [name for name in names if name in self.r]
        tensors = [self.weight, *(t for name in set(own) for t in self.factors(name))]
        if self.bias is not None:
            tensors.append(self.bias)
        settings = tuple((float(self.scaling[name]), self.dropout_of(name)) for name in own)
        device = self.weight.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        hooked, grad = _is_hooked(self.base_layer), torch.is_grad_enabled()
        versions = tuple((t.data_ptr(), t._version) for t in tensors)
        return names, active.spans, versions, settings, autocast, hooked, grad

    def _adapted(self, names: Sequence[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One function computes the base and the plain adapters, where nothing stands between them."""
        output = self._at_once(x)
        return super()._adapted(names, x, *args, **kwargs) if output is None else output

    def _mixed(self, rows: Sequence[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One product computes all rows, where their adapters are plain and drop alike."""
        if self._activation.spans is not None:
            self._activation.check_spans(x.numel() // x.shape[-1])
            output = self._at_once(x)
            return super()._mixed(rows, x, *args, **kwargs) if output is None else output
        self._activation.repeats(x.shape[0])
        chosen = [index for index, name in enumerate(rows) if name in self.r]
        names = [rows[index] for index in chosen]
        dropouts = {self.dropout_of(name) for name in names}
        if len(dropouts) != 1 or not all(self._is_plain(name) for name in set(names)):
            return super()._mixed(rows, x, *args, **kwargs)
        base_out = self._base(x, *args, **kwargs)
        x_BTI = x.reshape(len(rows), -1, x.shape[-1])
        everyone = len(chosen) == len(rows)
        factors = [(*self.factors(name), self.scaling[name]) for name in names]
        term_BTO = low_rank_rows(x_BTI if everyone else x_BTI[chosen], factors, dropouts.pop())
        term_BTO = term_BTO.to(base_out.dtype)
        if everyone:
            return base_out + term_BTO.view(base_out.shape)
        out_BTO = base_out.reshape(len(rows), -1, base_out.shape[-1])
        index = torch.tensor(chosen, device=x.device)
        return out_BTO.index_add(0, index, term_BTO).view(base_out.shape)

    def _at_once(self, x: Tensor) -> Tensor | None:
        """Return what one function computes for base and adapters; None where there is no such function."""
        output = None if self.together is None else self.together.waiting(self, x)
        if output is not None:
            return output
        segments = self.segments()
        if segments is None:
            return None
        output = None if self.together is None else self.together.output(self, x, segments)
        return lora_linears(x, [self.bases()], segments)[0] if output is None else output

    def _is_plain(self, name: str) -> bool:
        return self.variants[name] == "plain" and self.bias_of(name) is None

    def _low(self, name: str, x: Tensor) -> Tensor:
        low = low_rank(x, self._joined([name]), self.dropout_of(name))
        bias = self.bias_of(name)
        return low if bias is None else low + bias.to(low.dtype) * self.scaling[name]

    def bias_of(self, name: str) -> Tensor | None:
        factors: Any = self.lora_B
        return factors[name].bias if name in factors else None

    def _joined(self, names: Sequence[str]) -> tuple[Tensor, Tensor, float]:
        return joined([(*self.factors(name), self.scaling[name]) for name in names])


def _is_hooked(module: nn.Module) -> bool:
    """Return whether calling `module` does more than its class's forward, such as moving its weight."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


@final
class Layer(LinearLike):
    """h = W x + bias + scaling * B A x."""
