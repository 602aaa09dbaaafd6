"""LoRA over a parameter that is no layer's: the stacked weights of a mixture of experts, or a matrix.

Shape key: E experts, I in, O out, R rank. Files hold A as [E R, I], the experts one after the other, and B as
[O, R E], the experts fastest.
"""

import re
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from loralab.core.algebra import wide
from loralab.core.config import LoraConfig
from loralab.core.inits import changes_base
from loralab.core.layers.activation import Activation
from loralab.core.layers.effective import EffectiveLayer
from loralab.errors import ConfigError, TargetError

__all__ = ["Layer"]

_OLD = re.compile(r"0\.1[78]\.")
"""PEFT releases that took every stack for [E, I, O]."""


@final
class Layer(EffectiveLayer):
    """A module with W_e + scaling * B_e A_e in place of the parameter `name`, for each expert e.

    Several parameters of one module have one such layer each, one inside the other; the first registered is
    the innermost, as in PEFT's files.
    """

    noun = "parameter"

    @property
    def low_rank_merge(self) -> bool:  # type: ignore[override]
        return not self.num_experts

    peft_name = "ParamWrapper"

    def __init__(self, base_layer: nn.Module, activation: Activation, name: str) -> None:
        self.weight_name = name
        self.bias_name = ""
        depth, holder = 0, base_layer
        while isinstance(holder, Layer):
            depth, holder = depth + 1, holder.base_layer
        self._steps = "base_layer." * depth
        shape = tuple(getattr(holder, name).shape)
        if len(shape) not in (2, 3):
            raise TargetError(
                f"target_parameters: {name!r} is {list(shape)}; expected a matrix or a stack of them."
            )
        self.num_experts = shape[0] if len(shape) == 3 else 0
        self.transposed = self.num_experts > 0 and bool(getattr(holder, "is_transposed", False))
        super().__init__(base_layer, activation)

    @property
    def parameter_name(self) -> str:
        """The name of the parameter, under PEFT's name."""
        return self.weight_name

    @property
    def holder(self) -> nn.Module:
        module: nn.Module = self.base_layer
        while isinstance(module, Layer):
            module = module.base_layer
        return module

    @property
    def weight(self) -> Any:
        """What the module has under that name; another module may read it, as an attention does."""
        own = self.weight_name == "weight"
        return self.effective_weight() if own else self.base_layer.weight

    @property
    def bias(self) -> Any:
        """The module's bias, if it has one; no adapter changes it."""
        return getattr(self.base_layer, "bias", None)

    def _sizes(self) -> tuple[int, int]:
        *_, rows, columns = getattr(self.holder, self.weight_name).shape
        return (columns, rows) if self.transposed else (rows, columns)

    def _check(self, name: str, config: LoraConfig) -> None:
        super()._check(name, config)
        if self.num_experts and changes_base(config.init_lora_weights):
            raise TargetError(
                f"init_lora_weights={config.init_lora_weights!r} splits a matrix, and {self.path!r} is a "
                "stack of them; use True, False, 'gaussian' or 'orthogonal'."
            )

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        ranks = rank * max(1, self.num_experts)
        return (ranks, self.in_features), (self.out_features, ranks)

    def _create(self, name: str, rank: int, lora_bias: bool, device: str | None) -> None:
        super()._create(name, rank * max(1, self.num_experts), lora_bias, device)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(0, -2)

    def unmatrix(self, matrix_OI: Tensor) -> Tensor:
        return matrix_OI.view(self.original_weight.shape)

    def _stacks(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return A as [E, R, I] and B as [E, O, R]."""
        return (
            a.view(self.num_experts, -1, self.in_features),
            b.view(self.out_features, -1, self.num_experts).permute(2, 0, 1),
        )

    def _joined(self, names: Any) -> tuple[Tensor, Tensor, float]:
        if not self.num_experts:
            return super()._joined(names)
        stacks = [(*self._stacks(*self.factors(name)), self.scaling[name]) for name in names]
        if len(stacks) == 1:
            return stacks[0]
        a_ERI = torch.cat([a for a, _, _ in stacks], dim=1)
        return a_ERI, torch.cat([b * scaling for _, b, scaling in stacks], dim=2), 1.0

    def _added(self, weight: Tensor, factors: tuple[Tensor, Tensor, float]) -> Tensor:
        if not self.num_experts:
            return super()._added(weight, factors)
        a_ERI, b_EOR, scaling = (factors[0].to(weight.dtype), factors[1].to(weight.dtype), factors[2])
        left, right = (a_ERI.mT, b_EOR.mT) if self.transposed else (b_EOR, a_ERI)
        return torch.baddbmm(weight, left, right, alpha=scaling)

    def delta(self, name: str, onto: nn.Parameter | None = None) -> Tensor:
        if not self.num_experts:
            return super().delta(name, onto)
        dtype = wide(self.original_weight.dtype)
        a_ERI, b_EOR = self._stacks(*(factor.detach().to(dtype) for factor in self.factors(name)))
        delta_EOI = torch.bmm(b_EOR, a_ERI).mul_(self.scaling[name])
        return delta_EOI.mT if self.transposed else delta_EOI

    def translated(self, tensors: Mapping[str, Tensor], config: LoraConfig) -> Mapping[str, Tensor]:
        """Return the factors of a file as this layer keeps them.

        PEFT before 0.19 took each stack for [E, I, O]: over an [E, O, I] one its A belongs to the outputs.
        Such a file is known by its shapes, and where they are square by the release that it names.
        """
        a, b = tensors.get("lora_A.weight"), tensors.get("lora_B.weight")
        if not self.num_experts or self.transposed or a is None or b is None:
            return tensors
        swapped = (a.shape[1], b.shape[0]) == (self.out_features, self.in_features)
        square = self.in_features == self.out_features
        if not swapped or (square and not _OLD.match(config.peft_version or "")):
            return tensors
        a_ERO = a.view(self.num_experts, -1, self.out_features)
        b_IRE = b.view(self.in_features, -1, self.num_experts)
        return {
            "lora_A.weight": b_IRE.permute(2, 1, 0).flatten(0, 1),
            "lora_B.weight": a_ERO.permute(2, 1, 0).flatten(1),
        }

    def check_room(self, name: str, rank: int | None) -> None:
        if rank is not None and rank != self.r[name] and self.num_experts:
            raise ConfigError(
                f"the rank of {self.path!r} cannot be padded: it belongs to experts. Leave target_rank out."
            )
        super().check_room(name, rank)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        weight = self.effective_weight()
        if weight is getattr(self.holder, self.weight_name):
            return self.base_layer(*args, **kwargs)
        return self.call({self._steps + self.weight_name: weight}, args, kwargs)
