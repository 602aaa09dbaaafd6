"""A module around another one whose parameters can give way to merged ones and come back bit for bit."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.layers.activation import Activation
from loralab.core.layers.switchable import Switchable
from loralab.core.merge import Merged, Rounding, finite, round_randomly

__all__ = ["Mergeable"]

_OWN = ("_activation", "_weights", "_merged", "merged_adapters")
"""What is not there yet while the layer is made, or read from a pickle."""


class Mergeable(Switchable):
    """What merges keeps the original tensors aside and never adds to or subtracts from them.

    `base_layer` is the module as it was found; while adapters are merged its parameters are other tensors.
    """

    base_layer: nn.Module
    weight_name = "weight"
    """The parameter of the holder that adapters change."""
    bias_name = "bias"

    def __init__(self, base_layer: nn.Module, activation: Activation) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._activation = activation
        # In plain dicts, so that a weight kept aside is no parameter of the model.
        self._weights: dict[str, nn.Parameter] = {}
        self._merged: dict[str, nn.Parameter] = {}

    def __getattr__(self, name: str) -> Any:
        """What the layer does not have itself, the base answers: models read strides and sizes there."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("__") or name in _OWN:
                raise
            return getattr(self.base_layer, name)

    @abstractmethod
    def merged_weights(self, names: Sequence[str], rounding: Rounding = "nearest") -> Merged:
        """Return the parameters with these adapters merged into them. Nothing is changed, see `install`."""

    @property
    def holder(self) -> nn.Module:
        """The module as it was found, which holds the weight."""
        return self.base_layer

    @property
    def weight(self) -> Any:
        """The weight as it is now, merged if adapters are."""
        return getattr(self.holder, self.weight_name)

    @property
    def original_weight(self) -> nn.Parameter:
        """The weight as it was found, whatever is merged."""
        weight: nn.Parameter = self._weights.get(self.weight_name, getattr(self.holder, self.weight_name))
        return weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The base layer's bias, merged if the layer is."""
        bias: nn.Parameter | None = getattr(self.holder, self.bias_name, None)
        return bias

    @property
    def merged(self) -> bool:
        """Whether adapters are merged into the weight."""
        return bool(self.merged_adapters)

    def weight_under(self, names: Sequence[str]) -> nn.Parameter:
        """Return the weight that these adapters stand on, whatever is merged or runs."""
        return self.original_weight

    def dense_weight(self) -> Tensor:
        """Return the original weight in its own shape as plain floating-point numbers, without a gradient."""
        return self.dense(self.original_weight)

    def dense(self, weight: nn.Parameter) -> Tensor:
        """Return a weight that this layer stores as plain floating-point numbers, without a gradient."""
        return weight.detach()

    def stored(self, weight: Tensor) -> nn.Parameter:
        """Return `weight`, which has the original's shape, in the form in which this layer keeps weights."""
        return nn.Parameter(weight.to(self.original_weight.dtype).contiguous(), requires_grad=False)

    def rounded(self, total: Tensor, names: Sequence[str], rounding: Rounding) -> nn.Parameter:
        """Return the sum of the weight and the deltas of `names` as a parameter.

        Raises:
            AdapterError: it would not be finite.
        """
        if rounding == "float32":
            return finite(nn.Parameter(total, requires_grad=False), names)
        if rounding == "stochastic":
            total = round_randomly(total, self.original_weight.dtype)
        return finite(self.stored(total), names)

    def report(self, merged: nn.Parameter, total: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return (|wanted|, |applied - wanted|) for a merged weight that stands for `total`, not `before`."""
        applied = self.dense(merged).to(total.dtype)
        wanted = torch.linalg.vector_norm(total - before.to(total.dtype))
        return wanted, torch.linalg.vector_norm(applied.sub(total))

    def install(self, names: Sequence[str], merged: dict[str, nn.Parameter]) -> None:
        """Put the parameters that `merged_weights(names)` returned in place; nothing puts the originals back.

        A weight that is tied to another module's stays as it is there.
        """
        self.show_merged(False)
        self._weights = {key: getattr(self.holder, key) for key in merged}
        if self.weight_name in merged:
            self._weights[self.weight_name] = self.weight_under(names)
        self._merged = merged
        self.merged_adapters = [name for name in names if name in self.adapters]
        self.follow()

    def merge(self, safe_merge: bool = False, adapter_names: Sequence[str] | None = None) -> None:
        """Merge these adapters (by default the active ones) into this module alone, beside earlier ones.

        Raises:
            AdapterError: the sum is not finite; nothing is changed. `safe_merge` is there for PEFT's sake.
        """
        more = self.active_adapters if adapter_names is None else adapter_names
        names = list(
            dict.fromkeys((*self.merged_adapters, *(name for name in more if name in self.adapters)))
        )
        self.install(names, self.merged_weights(names).parameters)

    def unmerge(self) -> None:
        """Put this module's original parameters back, bit for bit."""
        self.install([], {})

    def follow(self) -> None:
        self.show_merged(self._activation.enabled)

    def show_merged(self, shown: bool) -> None:
        """Put the merged parameters in place, or the original ones; both are kept, neither is computed."""
        for key, value in (self._merged if shown else self._weights).items():
            self._put(key, value)

    def _base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output; one whose merged weight was kept in fp32 computes in fp32."""
        merged = self._merged.get(self.weight_name) if self._merged else None
        output: Tensor
        if merged is None or merged.dtype == self.original_weight.dtype or not self._activation.enabled:
            output = self.base_layer(x, *args, **kwargs)
            return output
        output = self.base_layer(x.to(merged.dtype) if x.is_floating_point() else x, *args, **kwargs)
        return output.to(self.original_weight.dtype)

    def _put(self, key: str, value: nn.Parameter) -> None:
        """Make `value` the holder's parameter of that name."""
        setattr(self.holder, key, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or convert what is kept aside with all the others."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for kept in (self._weights, self._merged):
            for key, value in kept.items():
                if value is not getattr(self.holder, key):
                    kept[key] = self._moved(value, fn)
        return self

    def _moved(self, value: nn.Parameter, fn: Any) -> nn.Parameter:
        value.data = fn(value.data)
        return value
