"""Layers whose base reads its weight instead of being called: adapters act on the weight itself.

Shape key: I in, O out, R rank.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from loralab.core.config import LoraConfig
from loralab.core.layers.activation import BASE
from loralab.core.layers.linear import LinearLike
from loralab.errors import AdapterError, TargetError

__all__ = ["EffectiveLayer"]


class EffectiveLayer(LinearLike):
    """A layer that computes with W + scaling * B A in place of W, made anew for each forward pass.

    What runs is what a merge would give, in the base's precision. There is no input between A and W x, so
    dropout has nothing to act on; nor are there rows of a batch to tell apart.
    """

    noun = "weight"
    refuses_dropout = True

    def _check(self, name: str, config: LoraConfig) -> None:
        asked = {
            f"lora_dropout={config.lora_dropout}": bool(config.lora_dropout) and self.refuses_dropout,
            "lora_bias=True": config.lora_bias,
            "use_dora=True": config.use_dora,
        }
        for setting, given in asked.items():
            if given:
                raise TargetError(
                    f"{setting} has no meaning for {self.path!r}: the adapter acts on the {self.noun}. "
                    "Leave it out, or exclude the module."
                )

    def running(self) -> list[str]:
        """Return the names of the adapters that change the weight now.

        Raises:
            AdapterError: a mixed batch has rows for an adapter of this layer.
        """
        active = self._activation
        if active.enabled and active.rows is not None:
            mixed = [name for name in dict.fromkeys(active.rows) if name != BASE and name in self.r]
            if mixed:
                raise AdapterError(
                    f"adapter {mixed[0]!r} changes the {self.noun} of {self.path!r}, which all rows of a "
                    "batch share; it cannot be mixed."
                )
        return [name for name in active.running if name in self.r and name not in self.merged_adapters]

    def effective_weight(self) -> Tensor:
        """Return the weight with the running adapters added, in its own shape and dtype."""
        weight = self._lowered(super().weight)
        names = self.running()
        return self._added(weight, self._joined(names)) if names else weight

    def _lowered(self, tensor: Tensor) -> Tensor:
        """Return a merged tensor that was kept in fp32 in the base's precision, as its reader needs it."""
        return tensor.to(self.original_weight.dtype) if self._merged else tensor

    def _added(self, weight: Tensor, factors: tuple[Tensor, Tensor, float]) -> Tensor:
        a_RI, b_OR, scaling = factors
        return torch.addmm(weight, b_OR.to(weight.dtype), a_RI.to(weight.dtype), alpha=scaling)

    def call(self, weights: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what the base returns with these tensors in place of its parameters."""
        return functional_call(self.base_layer, dict(weights), tuple(args), dict(kwargs))

    def __getattr__(self, name: str) -> Any:
        if name != "weight" and name == self.__dict__.get("weight_name", type(self).weight_name):
            return self.effective_weight()
        return super().__getattr__(name)
