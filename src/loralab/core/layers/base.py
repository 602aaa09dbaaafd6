"""The abstract LoRA layer: one base layer, any number of named adapters over it.

A layer knows shapes and shows them to the variants as matrices. Shape key: I in, O out, R rank; a
convolution's I counts its kernel: [O, I] is the weight flattened.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.algebra import wide
from loralab.core.config import LoraConfig
from loralab.core.inits import Start, changes_base, find_init
from loralab.core.variants import State, find_variant
from loralab.errors import AdapterError

__all__ = ["Activation", "LoraLayer"]

BASE = "__base__"
"""In a mixed batch, the name of a row that no adapter changes."""


@dataclass
class Activation:
    """Which adapters run. One object is shared by all layers of a model, so switching touches no layer."""

    names: tuple[str, ...] = ()
    enabled: bool = True
    rows: tuple[str, ...] | None = None
    """In a mixed batch: the adapter of every row."""


class _Tensor(nn.Module):
    """One parameter, as a module, so that it has the name that PEFT gives it."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(value)


class LoraLayer(nn.Module, ABC):
    """A base layer with its adapters. Subclasses know the shapes of one kind of base layer.

    `base_layer` is the layer as it was found; its class and weight are never changed except while merged,
    when its weight is another tensor and the original is kept aside, and by the initialisations that say so.
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
        self._own_scaling: dict[str, float] = {}
        self.variants: dict[str, str] = {}
        self.lora_dropout = nn.ModuleDict()
        self.lora_magnitude_vector = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._activation = activation
        # In plain dicts, so that a weight kept aside is no parameter of the model.
        self._weights: dict[str, nn.Parameter] = {}
        self._merged: dict[str, nn.Parameter] = {}

    # what a kind of layer says

    @abstractmethod
    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of (A, B) for a rank."""

    @abstractmethod
    def _create(self, name: str, rank: int, lora_bias: bool, device: str | None) -> None:
        """Register factors for an adapter, with values still to be set."""

    @abstractmethod
    def _low(self, name: str, x: Tensor) -> Tensor:
        """Return scaling * (B A drop(x) + B's bias), in the shape of the base's output."""

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """Return a tensor that has the base weight's shape as [O, I], a view of it."""

    @abstractmethod
    def unmatrix(self, matrix_OI: Tensor) -> Tensor:
        """Return [O, I] in the base weight's shape, a view of it; undoes `matrix`."""

    def per_output(self, vector_O: Tensor) -> Tensor:
        """Return a vector [O] in a shape that multiplies the layer's output."""
        return vector_O

    def _check(self, name: str, config: LoraConfig) -> None:
        """Raise TargetError if this base layer cannot take the adapter."""

    def _adapted(self, names: Sequence[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output with the adapters `names` applied."""
        base_out: Tensor = self.base_layer(x, *args, **kwargs)
        output = base_out
        for name in names:
            output = output + self._term(name, base_out, x)
        return output

    def _term(self, name: str, base_out: Tensor, x: Tensor) -> Tensor:
        term: Tensor = find_variant(self.variants[name]).term(self.state(name), base_out, self._low(name, x))
        return term.to(base_out.dtype)

    # what is known of the base and of the adapters

    @property
    def weight(self) -> nn.Parameter:
        """The base layer's weight, merged if the layer is."""
        weight: nn.Parameter = self.base_layer.weight  # type: ignore[assignment]
        return weight

    @property
    def original_weight(self) -> nn.Parameter:
        """The base layer's weight as it was found, whatever is merged."""
        return self._weights.get("weight", self.weight)

    def dense_weight(self) -> Tensor:
        """Return the original weight in its own shape as plain floating-point numbers, without a gradient."""
        return self.original_weight.detach()

    def stored(self, weight: Tensor) -> nn.Parameter:
        """Return `weight`, which has the original's shape, in the form in which this layer keeps weights."""
        return nn.Parameter(weight.to(self.original_weight.dtype).contiguous(), requires_grad=False)

    @property
    def bias(self) -> nn.Parameter | None:
        """The base layer's bias, merged if the layer is."""
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

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """Return (A, B) of an adapter as they are stored, in the shapes of PEFT's files."""
        a, b = (getattr(self, table)[name] for table in self.factor_names)
        return (a, b) if self.lookup else (a.weight, b.weight)

    def state(self, name: str) -> State:
        """Return an adapter on this layer as its variant sees it."""
        a, b = self.factors(name)
        extra = {
            key: getattr(self, key)[name].weight.flatten()
            for key in find_variant(self.variants[name]).TENSORS
            if name in getattr(self, key)
        }
        return State(
            weight_OI=self.matrix(self.dense_weight()),
            a_RI=a.flatten(1),
            b_OR=b.flatten(1),
            scaling=self.scaling[name],
            extra=extra,
            bias_O=self.bias,
            per_output=self.per_output,
        )

    # adapters come and go

    def add_adapter(
        self, name: str, path: str, config: LoraConfig, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        """Register the adapter `name` for this layer, which stands at `path` in the model.

        Without `tensors` (by their names in PEFT's files) new ones are initialised. They lie on the base
        weight's device, and are fp32 over a base of less: small steps would be lost in bf16 or fp16.
        """
        self._check(name, config)
        weight = self.weight
        rank = config.rank_of(path)
        residual = changes_base(config.init_lora_weights)
        empty = weight.is_meta or (tensors is not None and not residual)
        self._create(name, rank, config.lora_bias, "meta" if empty else None)
        self.r[name] = rank
        self.scale_adapter(name, path, config)
        self.lora_dropout[name] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.variants[name] = config.variant
        if not empty:
            self._initialise(name, path, config)
        dtype = wide(weight.dtype)
        for key, value in (self.tensors(name) if tensors is None else tensors).items():
            self._place(name, key, value.detach().to(weight.device, dtype))
        if tensors is None:
            for key, value in self._first_extras(name).items():
                self._place(name, key, value)
        self.train_adapter(name, not config.inference_mode)

    def _initialise(self, name: str, path: str, config: LoraConfig) -> None:
        a, b = self.factors(name)
        start = Start(
            a_RI=a.detach().flatten(1),
            b_OR=b.detach().flatten(1),
            weight_OI=self.matrix(self.dense_weight()),
            scaling=self.scaling[name],
            path=path,
            config=config,
            lookup=self.lookup,
        )
        with torch.no_grad():
            residual_OI = find_init(config.init_lora_weights)(start)
            if config.lora_bias and config.init_lora_weights is not False:
                self.tensors(name)["lora_B.bias"].zero_()
        if residual_OI is not None:
            if self.merged:
                raise AdapterError(
                    f"init_lora_weights={config.init_lora_weights!r} changes the base weight; unmerge first."
                )
            self.base_layer.weight = self.stored(self.unmatrix(residual_OI))

    def _first_extras(self, name: str) -> dict[str, Tensor]:
        variant = find_variant(self.variants[name])
        values = variant.create(self.state(name))
        return {key: self.per_output(value) for key, value in zip(variant.TENSORS, values, strict=True)}

    def _place(self, name: str, key: str, value: Tensor) -> None:
        """Make `value` the adapter's parameter of that name in PEFT's files."""
        table_name, _, leaf = key.partition(".")
        table = getattr(self, table_name)
        if table_name in self.factor_names and not self.lookup:
            setattr(table[name], leaf, nn.Parameter(value))
        elif table_name in self.factor_names:
            table[name] = nn.Parameter(value)
        else:
            table[name] = _Tensor(value)

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter; one that this layer does not hold is no fault."""
        if name in self.merged_adapters:
            others = [other for other in self.merged_adapters if other != name]
            self.install(others, self.merged_weights(others))
        tables: list[dict[str, Any]] = [
            self.r,
            self.lora_alpha,
            self.scaling,
            self._own_scaling,
            self.variants,
        ]
        for table in tables:
            table.pop(name, None)
        for attribute in ("lora_dropout", "lora_magnitude_vector", *self.factor_names):
            modules = getattr(self, attribute)
            if name in modules:
                del modules[name]

    def train_adapter(self, name: str, trains: bool) -> None:
        """Set whether the tensors of an adapter get gradients."""
        if name in self.r:
            for tensor in self.tensors(name).values():
                tensor.requires_grad_(trains)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the adapter's parameters under the names they have in a PEFT file."""
        a, b = self.factors(name)
        keys = self.factor_names if self.lookup else tuple(f"{key}.weight" for key in self.factor_names)
        found = dict(zip(keys, (a, b), strict=True))
        bias = None if self.lookup else self.lora_B[name].bias  # type: ignore[index, union-attr]
        if bias is not None:
            found["lora_B.bias"] = bias
        for key in find_variant(self.variants[name]).TENSORS:
            if name in getattr(self, key):
                found[key] = getattr(self, key)[name].weight
        return found

    def expected(self, path: str, config: LoraConfig) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the tensors that an adapter of that config has here, at `path`."""
        a, b = self.factor_shapes(config.rank_of(path))
        keys = self.factor_names if self.lookup else tuple(f"{key}.weight" for key in self.factor_names)
        shapes = {keys[0]: a, keys[1]: b}
        if config.lora_bias:
            shapes["lora_B.bias"] = (b[0],)
        vector = tuple(self.per_output(torch.empty(b[0], device="meta")).shape)
        return shapes | dict.fromkeys(find_variant(config.variant).TENSORS, vector)

    def dropout_of(self, name: str) -> float:
        """Return the dropout probability of an adapter now: 0 outside training."""
        dropout = self.lora_dropout[name]
        return dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0

    # scale

    def scale_adapter(self, name: str, path: str, config: LoraConfig) -> None:
        """Take an adapter's alpha and scaling from `config`."""
        self.lora_alpha[name] = config.alpha_of(path)
        self.scaling[name] = self._own_scaling[name] = config.scaling_of(path)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Make the adapter's delta `scale` times what its alpha and rank alone give."""
        if adapter in self.r:
            self.scaling[adapter] = scale * self._own_scaling[adapter]

    def scale_layer(self, scale: float) -> None:
        """Multiply the scale of the active adapters."""
        for name in self._activation.names:
            if name in self.r:
                self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scale of the active adapters; without `scale`, back to what alpha and rank give."""
        for name in self._activation.names:
            if name in self.r:
                self.scaling[name] = self._own_scaling[name] if scale is None else self.scaling[name] / scale

    # forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output with the active adapters applied."""
        active = self._activation
        if active.rows is not None and active.enabled:
            return self._mixed(active.rows, x, *args, **kwargs)
        names = [n for n in active.names if n in self.r and n not in self.merged_adapters]
        if not names or not active.enabled:
            output: Tensor = self.base_layer(x, *args, **kwargs)
            return output
        return self._adapted(names, x, *args, **kwargs)

    def _mixed(self, rows: Sequence[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output where row i of the batch runs with the adapter rows[i].

        A layer that sees several rows for each of the caller's (beams, flattened tokens) repeats the names.
        """
        base_out: Tensor = self.base_layer(x, *args, **kwargs)
        repeat = x.shape[0] // len(rows)
        if repeat * len(rows) != x.shape[0]:
            raise AdapterError(f"adapter_names has {len(rows)} entries for a batch of {x.shape[0]} rows.")
        output = base_out
        for name in dict.fromkeys(rows):
            if name == BASE or name not in self.r:
                continue
            chosen = torch.tensor([row == name for row in rows for _ in range(repeat)], device=x.device)
            index = chosen.nonzero().squeeze(1)
            term = self._term(name, base_out[index], x[index])
            output = output.index_add(0, index, term)
        return output

    # merge

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return `delta(adapter)`, under PEFT's name."""
        return self.delta(adapter)

    def get_base_layer(self) -> nn.Module:
        """Return the layer as it was found."""
        return self.base_layer

    def delta(self, name: str) -> Tensor:
        """Return what an adapter adds to the base weight, in its shape, in fp32 or wider."""
        delta_OI: Tensor = find_variant(self.variants[name]).delta(self.state(name))
        return self.unmatrix(delta_OI)

    def merged_weights(self, names: Sequence[str]) -> dict[str, nn.Parameter]:
        """Return the base's parameters with the adapters' deltas added in fp32 and rounded once.

        Nothing is changed, see `install`. The order of the names does not matter, to the bit.

        Raises:
            AdapterError: a merged weight would not be finite, or there is no bias to merge one into.
        """
        names = sorted(name for name in names if name in self.r)
        if not names:
            return {}
        total = _sum(self.dense_weight(), [self.delta(name) for name in names])
        merged = {"weight": _finite(self.stored(total), names)}
        biases = {n: t["lora_B.bias"] for n in names if "lora_B.bias" in (t := self.tensors(n))}
        if biases:
            bias = self._weights.get("bias", self.bias)
            if bias is None:
                raise AdapterError(
                    f"{', '.join(biases)}: lora_bias cannot be merged into a layer that has no bias."
                )
            parts = [value.detach() * self.scaling[name] for name, value in biases.items()]
            total = _sum(bias.detach(), parts)
            merged["bias"] = _finite(nn.Parameter(total.to(bias.dtype), requires_grad=False), names)
        return merged

    def install(self, names: Sequence[str], merged: dict[str, nn.Parameter]) -> None:
        """Put what `merged_weights(names)` returned in place; nothing puts the originals back.

        The original tensors are kept, never added to or subtracted from, so they come back bit for bit. A
        weight that is tied to another module's stays as it is there.
        """
        self.show_merged(False)
        originals = {key: getattr(self.base_layer, key) for key in merged}
        self._weights = originals
        self._merged = merged
        self.merged_adapters = [name for name in names if name in self.r]
        self.show_merged(self._activation.enabled)

    def show_merged(self, shown: bool) -> None:
        """Put the merged parameters in place, or the original ones; both are kept, neither is computed."""
        for key, value in (self._merged if shown else self._weights).items():
            setattr(self.base_layer, key, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or convert what is kept aside with all the others."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for key, value in (*self._weights.items(), *self._merged.items()):
            if value is not getattr(self.base_layer, key):
                value.data = fn(value.data)
        return self

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: r={rank}" for name, rank in self.r.items())


def _sum(original: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    total = original.to(wide(original.dtype), copy=True)
    for delta in deltas:
        total += delta
    return total


def _finite(merged: nn.Parameter, names: Sequence[str]) -> nn.Parameter:
    if merged.dtype.is_floating_point and not torch.isfinite(merged).all():
        raise AdapterError(
            f"merging {', '.join(names)} gives weights that are not finite; nothing was changed."
        )
    return merged
