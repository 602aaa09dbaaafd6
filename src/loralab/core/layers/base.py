"""The abstract LoRA layer: one base layer, any number of named adapters over it.

Shape key: I in, O out, R rank; a convolution's I counts its kernel: [O, I] is the weight flattened.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.config import LoraConfig
from loralab.core.inits import find_init
from loralab.errors import AdapterError

__all__ = ["Activation", "LoraLayer"]


@dataclass
class Activation:
    """Which adapters run. One object is shared by all layers of a model, so switching touches no layer."""

    names: tuple[str, ...] = ()
    enabled: bool = True


class LoraLayer(nn.Module, ABC):
    """A base layer with its adapters. Subclasses know the shapes of one kind of base layer.

    `base_layer` is the layer as it was found; its class and weight are never changed except while merged,
    when its weight is another tensor and the original is kept aside.
    """

    base_layer: nn.Module
    factor_names = ("lora_A", "lora_B")
    lookup = False
    """Whether the input is an index (an embedding)."""

    def __init__(self, base_layer: nn.Module, activation: Activation) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.lora_dropout = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._activation = activation
        # In a plain dict, so that a weight kept aside is no parameter of the model.
        self._weights: dict[str, nn.Parameter] = {}

    @abstractmethod
    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of (A, B) for a rank."""

    @abstractmethod
    def _create(self, name: str, rank: int, device: str | None) -> None:
        """Register factors for an adapter, with values still to be set."""

    @abstractmethod
    def _adapted(self, names: Sequence[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output with the adapters `names` applied."""

    @abstractmethod
    def delta(self, name: str) -> Tensor:
        """Return scaling * B A in fp32 (or wider), in the shape of the base weight."""

    @property
    def weight(self) -> nn.Parameter:
        """The base layer's weight, merged if the layer is."""
        weight: nn.Parameter = self.base_layer.weight  # type: ignore[assignment]
        return weight

    @property
    def original_weight(self) -> nn.Parameter:
        """The base layer's weight as it was found, whatever is merged."""
        return self._weights.get("original", self.weight)

    @property
    def bias(self) -> nn.Parameter | None:
        """The base layer's bias."""
        bias: nn.Parameter | None = getattr(self.base_layer, "bias", None)
        return bias

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that this layer holds."""
        return tuple(self.r)

    @property
    def active_adapters(self) -> list[str]:
        """The names of the model's active adapters."""
        return list(self._activation.names)

    @property
    def disable_adapters(self) -> bool:
        """Whether adapters are switched off."""
        return not self._activation.enabled

    @property
    def merged(self) -> bool:
        """Whether adapters are merged into the base weight."""
        return bool(self.merged_adapters)

    def add_adapter(
        self, name: str, path: str, config: LoraConfig, factors: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Register the adapter `name` for this layer, which stands at `path` in the model.

        Without `factors` (A, B) new ones are initialised. They lie on the base weight's device, and are fp32
        over a base of less: small steps would be lost in bf16 or fp16.
        """
        weight = self.weight
        rank = config.rank_of(path)
        empty = factors is not None or weight.is_meta
        self._create(name, rank, "meta" if empty else None)
        self.r[name] = rank
        self.scale_adapter(name, path, config)
        self.lora_dropout[name] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        if factors is None:
            factors = self.factors(name)
            with torch.no_grad():
                find_init(config.init_lora_weights)(*factors, self.lookup)
        self._place(name, factors, not config.inference_mode)

    def scale_adapter(self, name: str, path: str, config: LoraConfig) -> None:
        """Take an adapter's alpha and scaling from `config`."""
        self.lora_alpha[name] = config.alpha_of(path)
        self.scaling[name] = config.scaling_of(path)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """Return (A, B) of an adapter as they are stored, in the shapes of PEFT's files."""
        a, b = (getattr(self, table)[name] for table in self.factor_names)
        return (a, b) if self.lookup else (a.weight, b.weight)

    def _place(self, name: str, factors: tuple[Tensor, Tensor], trains: bool) -> None:
        dtype = _factor_dtype(self.weight.dtype)
        for key, factor in zip(self.factor_names, factors, strict=True):
            table = getattr(self, key)
            placed = nn.Parameter(factor.detach().to(self.weight.device, dtype), requires_grad=trains)
            if self.lookup:
                table[name] = placed
            else:
                table[name].weight = placed

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter; one that this layer does not hold is no fault."""
        if name in self.merged_adapters:
            others = [other for other in self.merged_adapters if other != name]
            self.install(others, self.merged_weight(others))
        for table in (self.r, self.lora_alpha, self.scaling):
            table.pop(name, None)
        for attribute in ("lora_dropout", *self.factor_names):
            table = getattr(self, attribute)
            if name in table:
                del table[name]

    def train_adapter(self, name: str, trains: bool) -> None:
        """Set whether the factors of an adapter get gradients."""
        if name in self.r:
            for factor in self.factors(name):
                factor.requires_grad_(trains)

    def tensor_names(self) -> tuple[str, ...]:
        """Return the names that (A, B) have in a PEFT file."""
        return self.factor_names if self.lookup else tuple(f"{key}.weight" for key in self.factor_names)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the adapter's tensors under the names they have in a PEFT file."""
        return dict(zip(self.tensor_names(), self.factors(name), strict=True))

    def dropout_of(self, name: str) -> float:
        """Return the dropout probability of an adapter now: 0 outside training."""
        dropout = self.lora_dropout[name]
        return dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output with the active adapters applied."""
        active = self._activation
        names = [n for n in active.names if n in self.r and n not in self.merged_adapters]
        if not names or not active.enabled:
            output: Tensor = self.base_layer(x, *args, **kwargs)
            return output
        return self._adapted(names, x, *args, **kwargs)

    def merged_weight(self, names: Sequence[str]) -> nn.Parameter | None:
        """Return W + the sum of the adapters' deltas, added in fp32 and rounded once; None for no adapter.

        Nothing is changed, see `install`. The order of the names does not matter, to the bit.

        Raises:
            AdapterError: a merged weight would not be finite.
        """
        names = sorted(name for name in names if name in self.r)
        if not names:
            return None
        original = self.original_weight
        total = original.detach().to(_delta_dtype(original.dtype), copy=True)
        for name in names:
            total += self.delta(name)
        result = total.to(original.dtype)
        if not torch.isfinite(result).all():
            raise AdapterError(
                f"merging {', '.join(names)} gives weights that are not finite; nothing was changed."
            )
        return nn.Parameter(result, requires_grad=False)

    def install(self, names: Sequence[str], merged: nn.Parameter | None) -> None:
        """Put what `merged_weight(names)` returned in place of the weight; None puts the original back.

        The original tensor is kept, never added to or subtracted from, so it comes back bit for bit. A weight
        that is tied to another module's stays as it is there.
        """
        original = self.original_weight
        self._weights = {} if merged is None else {"original": original, "merged": merged}
        self.base_layer.weight = original
        self.merged_adapters = [name for name in names if name in self.r]
        self.show_merged(self._activation.enabled)

    def show_merged(self, shown: bool) -> None:
        """Put the merged weight in place, or the original one; both are kept, neither is computed."""
        if self._weights:
            self.base_layer.weight = self._weights["merged" if shown else "original"]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or convert the weight that is kept aside with all the others."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for weight in self._weights.values():
            if weight is not self.weight:
                weight.data = fn(weight.data)
        return self

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: r={rank}" for name, rank in self.r.items())


def _delta_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _factor_dtype(dtype: torch.dtype) -> torch.dtype:
    return _delta_dtype(dtype) if dtype.is_floating_point else torch.float32


def product(a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
    """Return scaling * B A, shape [O, I], in fp32 or wider."""
    dtype = _delta_dtype(a_RI.dtype)
    return (b_OR.detach().to(dtype) @ a_RI.detach().to(dtype)).mul_(scaling)


def joined(pairs: Sequence[tuple[Tensor, Tensor]], scalings: Sequence[float]) -> tuple[Tensor, Tensor, float]:
    """Return one pair (A, B) and a scaling whose scaling * B A is the sum of all the pairs' deltas.

    Low-rank deltas add by concatenation along the rank: [B1 B2] [A1; A2] = B1 A1 + B2 A2.
    """
    if len(pairs) == 1:
        return *pairs[0], scalings[0]
    a_RI = torch.cat([a for a, _ in pairs])
    b_OR = torch.cat([b * s for (_, b), s in zip(pairs, scalings, strict=True)], dim=1)
    return a_RI, b_OR, 1.0
