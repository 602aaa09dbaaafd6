"""The abstract LoRA layer: what its adapters add to the base layer's output, and to its weight.

Shape key: I in, O out, R rank.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.algebra import joined, norm, wide
from loralab.core.config import LoraConfig
from loralab.core.layers.activation import BASE
from loralab.core.layers.holding import Holding
from loralab.core.merge import Merged, Rounding, add_low_rank, check_finite, finite, total
from loralab.core.variants import find_variant
from loralab.errors import AdapterError

__all__ = ["LoraLayer"]


class LoraLayer(Holding):
    """A base layer with its adapters applied. Subclasses know one kind of base layer."""

    @abstractmethod
    def _low(self, name: str, x: Tensor) -> Tensor:
        """Return scaling * (B A drop(x) + B's bias), in the shape of the base's output."""

    def _adapted(self, names: Sequence[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output with the adapters `names` applied."""
        base_out = self._base(x, *args, **kwargs)
        output = base_out
        for name in names:
            output = output + self._term(name, base_out, x)
        return output

    def _term(self, name: str, base_out: Tensor, x: Tensor) -> Tensor:
        term: Tensor = find_variant(self.variants[name]).term(self.state(name), base_out, self._low(name, x))
        return term.to(base_out.dtype)

    def parts(self, path: str) -> Mapping[str, "LoraLayer"]:
        """Return the layers that stand for the module at `path`, this one too, by their place in files."""
        return {path: self}

    def translated(self, tensors: Mapping[str, Tensor], config: LoraConfig) -> Mapping[str, Tensor]:
        """Return the tensors of a file in the layout of today's files; older ones may differ."""
        return tensors

    # forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output with the active adapters applied."""
        active = self._activation
        if active.rows is not None and active.enabled:
            return self._mixed(active.rows, x, *args, **kwargs)
        names = [n for n in active.names if n in self.r and n not in self.merged_adapters]
        if not names or not active.enabled:
            return self._base(x, *args, **kwargs)
        return self._adapted(names, x, *args, **kwargs)

    def _mixed(self, rows: Sequence[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output where row i of the batch runs with the adapter rows[i].

        A layer that sees several rows for each of the caller's (beams, flattened tokens) repeats the names.
        In a batch of spans, tokens of one row are told apart in the same way.
        """
        base_out = self._base(x, *args, **kwargs)
        shape = base_out.shape
        if self._activation.spans is not None:
            x, base_out = x.flatten(0, 1), base_out.flatten(0, 1)
        output = base_out
        for name in dict.fromkeys(rows):
            if name == BASE or name not in self.r:
                continue
            index = torch.tensor(self._activation.rows_of(name, x.shape[0]), device=x.device)
            term = self._term(name, base_out[index], x[index])
            output = output.index_add(0, index, term)
        return output.view(shape)

    # merge

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return `delta(adapter)`, under PEFT's name."""
        return self.delta(adapter)

    def get_base_layer(self) -> nn.Module:
        """Return the layer as it was found."""
        return self.holder

    def delta(self, name: str, onto: nn.Parameter | None = None) -> Tensor:
        """Return what an adapter adds to the base weight (or to `onto`), in its shape, in fp32 or wider."""
        delta_OI: Tensor = find_variant(self.variants[name]).delta(self.state(name, onto))
        return self.unmatrix(delta_OI)

    def merged_weights(self, names: Sequence[str], rounding: Rounding = "nearest") -> Merged:
        """Return the base's parameters with the adapters' deltas added in fp32 and rounded once.

        Nothing is changed, see `install`. The order of the names does not matter, to the bit.

        Raises:
            AdapterError: a merged weight would not be finite, or there is no bias to merge one into.
        """
        names = sorted(name for name in names if name in self.r)
        if not names:
            return Merged()
        rounded, wanted, missed = self._merged_weight(names, rounding)
        merged = {self.weight_name: rounded}
        biases = {n: t["lora_B.bias"] for n in names if "lora_B.bias" in (t := self.tensors(n))}
        bias = self._weights.get(self.bias_name, self.bias) if self.bias_name else None
        if biases and bias is None:
            raise AdapterError(
                f"{', '.join(biases)}: lora_bias cannot be merged into a layer that has no bias."
            )
        if bias is not None and (biases or rounded.dtype != self.original_weight.dtype):
            parts = [value.detach() * self.scaling[name] for name, value in biases.items()]
            dtype = rounded.dtype if rounding == "float32" else bias.dtype
            value = total(bias.detach(), parts).to(dtype)
            merged[self.bias_name] = finite(nn.Parameter(value, requires_grad=False), names)
        return Merged(merged, wanted, missed)

    def _merged_weight(self, names: Sequence[str], rounding: Rounding) -> tuple[nn.Parameter, Tensor, Tensor]:
        """Return (the weight with the deltas of `names` in it, |the deltas|, |what rounding changed|)."""
        original = self.weight_under(names)
        before = self.dense(original)
        plain = all(self.variants[name] == "plain" for name in names)
        if not plain or not self.low_rank_merge:
            weight = total(before, [self.delta(name, original) for name in names])
            rounded = self.rounded(weight, names, rounding)
            return rounded, *self.report(rounded, weight, before)
        factors = joined([(*self.matrices(name), self.scaling[name]) for name in names])
        dtype = wide(original.dtype) if rounding == "float32" else original.dtype
        result_OI, missed = add_low_rank(self.matrix(before), factors, dtype, rounding)
        check_finite(missed, names)  # it is not, where a number of the result is not
        parameter = nn.Parameter(self.unmatrix(result_OI).contiguous(), requires_grad=False)
        return parameter, norm(factors), missed

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: r={rank}" for name, rank in self.r.items())
