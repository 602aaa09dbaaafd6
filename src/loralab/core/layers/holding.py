"""What a LoRA layer holds: named adapters, their tensors, and how they come and go.

A layer knows shapes and shows them to the variants as matrices. Shape key: I in, O out, R rank; a
convolution's I counts its kernel: [O, I] is the weight flattened.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.algebra import padded, wide
from loralab.core.config import LoraConfig
from loralab.core.inits import Start, changes_base, find_init
from loralab.core.layers.activation import BASE, Activation
from loralab.core.layers.scaled import Scaled
from loralab.core.variants import Norms, State, find_variant
from loralab.errors import AdapterError, ConfigError

__all__ = ["Holding", "Unset"]


class _Tensor(nn.Module):
    """One parameter, as a module, so that it has the name that PEFT gives it."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(value)


class Unset:
    """Of a module's class: parameters are left as memory was, because they are set right after."""

    def reset_parameters(self) -> None:
        """Do nothing."""


class Holding(Scaled):
    """A base layer and the tensors of its adapters. Subclasses know the shapes of one kind of base layer.

    `base_layer` is the layer as it was found; its class and weight are never changed except while merged,
    when its weight is another tensor and the original is kept aside, and by the initialisations that say so.
    """

    factor_names = ("lora_A", "lora_B")
    low_rank_merge = True
    """Whether a delta can be added as B A to the weight seen as a matrix, and stored as it is."""
    lookup = False
    """Whether the input is an index (an embedding)."""
    peft_name: str
    """What PEFT calls such a layer."""
    adapter_layer_names: tuple[str, ...] = (
        *("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    )
    """The tables of an adapter's tensors, under PEFT's name; a kind of layer has some of them."""
    quantization_backend: Any = None
    """Which library keeps the base's weight in a few bits, if one does, as PEFT tells it."""
    path = ""
    """Where the layer stands in the model, as patterns of ranks and alphas see it."""

    def __init__(self, base_layer: nn.Module, activation: Activation) -> None:
        super().__init__(base_layer, activation)
        self.variants: dict[str, str] = {}
        self.lora_dropout = nn.ModuleDict()
        self.lora_magnitude_vector = nn.ModuleDict()
        self._norms: dict[str, Norms] = {}
        self._bases: dict[str, nn.Parameter] = {}
        """By adapter: the base weight that its initialisation asks for; the one found, as "__base__"."""

    # what a kind of layer says

    @abstractmethod
    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of (A, B) for a rank."""

    @abstractmethod
    def _create(self, name: str, rank: int, lora_bias: bool, device: str | None) -> None:
        """Register factors for an adapter, with values still to be set."""

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """Return a tensor that has the base weight's shape as [O, I], a view of it."""

    @abstractmethod
    def unmatrix(self, matrix_OI: Tensor) -> Tensor:
        """Return [O, I] in the base weight's shape, a view of it; undoes `matrix`."""

    def per_output(self, vector_O: Tensor) -> Tensor:
        """Return a vector [O] in a shape that multiplies the layer's output."""
        return vector_O

    def _get_name(self) -> str:
        return f"lora.{self.peft_name}"

    def _check(self, name: str, config: LoraConfig) -> None:
        """Raise TargetError if this base layer cannot take the adapter."""

    # what is known of the base and of the adapters

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that this layer holds."""
        return tuple(self.r)

    @property
    def lora_variant(self) -> dict[str, str]:
        """The variants of the adapters that are no plain LoRA, under PEFT's name."""
        return {name: variant for name, variant in self.variants.items() if variant != "plain"}

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """Return (A, B) of an adapter as they are stored, in the shapes of PEFT's files."""
        a, b = (getattr(self, table)[name] for table in self.factor_names)
        return (a, b) if self.lookup else (a.weight, b.weight)

    def matrices(self, name: str) -> tuple[Tensor, Tensor]:
        """Return (A, B) of an adapter as matrices [R, I] and [O, R] whose product is the delta."""
        a, b = self.factors(name)
        return a.flatten(1), b.flatten(1)

    def bias_of(self, name: str) -> Tensor | None:
        """Return the bias of an adapter's B, if it has one."""
        return None

    def copy_values(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors, by their names in PEFT's files, into an adapter's own."""
        for key, tensor in self.tensors(name).items():
            tensor.detach().copy_(tensors[key])

    def state(self, name: str, onto: nn.Parameter | None = None) -> State:
        """Return an adapter on this layer as its variant sees it, over the weight it runs with or `onto`."""
        weight = self.weight_under((name, *self._activation.running)) if onto is None else onto
        a_RI, b_OR = self.matrices(name)
        extra = {
            key: getattr(self, key)[name].weight.flatten()
            for key in find_variant(self.variants[name]).TENSORS
            if name in getattr(self, key)
        }
        return State(
            sources=(weight, *self.factors(name)),
            dense=lambda: self.matrix(self.dense(weight)),
            a_RI=a_RI,
            b_OR=b_OR,
            scaling=self.scaling[name],
            extra=extra,
            bias_O=self.bias,
            per_output=self.per_output,
            norms=None if self.training else self._norms.setdefault(name, Norms()),
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
        weight = self.original_weight
        rank = config.rank_of(path)
        residual = changes_base(config.init_lora_weights)
        empty = weight.is_meta or (tensors is not None and not residual)
        if weight.is_meta and tensors is None:
            shapes = self.expected(path, config)
            tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        self._create(name, rank, config.lora_bias, "meta" if empty else None)
        self.r[name] = rank
        self.scale_adapter(name, path, config)
        self.lora_dropout[name] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.variants[name] = config.variant
        if not empty:
            self._initialise(name, path, config)
        dtype = wide(weight.dtype)
        values = self.tensors(name) if tensors is None else tensors
        for key, value in values.items():
            own = value.detach().to(weight.device, dtype, copy=tensors is not None)
            self._place(name, key, own)
        if tensors is None:
            for key, value in self._first_extras(name).items():
                self._place(name, key, value)
        if config.inference_mode:
            self.train_adapter(name, False)
        self._follow_mode(name)

    def train(self, mode: bool = True) -> "Holding":
        """Set the mode. Training may change tensors in ways torch does not count: norms are forgotten."""
        if mode:
            self._norms.clear()
        super().train(mode)
        return self

    def _follow_mode(self, name: str) -> None:
        """Give the modules of a new adapter this layer's mode, training or evaluation."""
        if not self.training:
            tables = ("lora_dropout",) if self.lookup else ("lora_dropout", *self.factor_names)
            for table in tables:
                getattr(self, table)[name].training = False

    def weight_under(self, names: Sequence[str]) -> nn.Parameter:
        """Return the weight that these adapters stand on, whatever is merged or runs.

        It is the one found, unless one of them was initialised together with another (as by PiSSA).
        """
        if not self._bases:
            return self.original_weight
        return self._bases[next((name for name in names if name in self._bases), BASE)]

    @property
    def changers(self) -> tuple[str, ...]:
        """The adapters that have a base weight of their own."""
        return tuple(name for name in self._bases if name != BASE)

    def follow(self) -> None:
        super().follow()
        if self._bases and not (self._merged and self._activation.enabled):
            self._put(self.weight_name, self.weight_under(self._activation.running))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        current = getattr(self.holder, self.weight_name)
        for name, weight in self._bases.items():
            if weight is not current:
                self._bases[name] = self._moved(weight, fn)
        return self

    def _initialise(self, name: str, path: str, config: LoraConfig) -> None:
        a, b = self.factors(name)
        found = self.weight_under(())
        start = Start(
            a_RI=a.detach().flatten(1),
            b_OR=b.detach().flatten(1),
            weight_OI=self.matrix(self.dense(found)),
            scaling=self.scaling[name],
            path=path,
            config=config,
            lookup=self.lookup,
            quantized=not found.is_floating_point(),
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
            self._bases.setdefault(BASE, found)
            self._bases[name] = self.stored(self.unmatrix(residual_OI))

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
        tables: list[dict[str, Any]] = [
            self.r,
            self.lora_alpha,
            self.scaling,
            self._own_scaling,
            self.variants,
        ]
        for table in tables:
            table.pop(name, None)
        self._norms.pop(name, None)
        self._activation.forget(name)
        self._bases.pop(name, None)
        for attribute in ("lora_dropout", "lora_magnitude_vector", *self.factor_names):
            modules = getattr(self, attribute)
            if name in modules:
                del modules[name]
        if name in self.merged_adapters:
            rest = [other for other in self.merged_adapters if other != name]
            self.install(rest, self.merged_weights(rest).parameters)
        self.follow()
        if not self.changers:
            self._bases.clear()

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
        bias = self.bias_of(name)
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
        extras = find_variant(config.variant).TENSORS
        if extras:
            vector = tuple(self.per_output(torch.empty(b[0], device="meta")).shape)
            shapes |= dict.fromkeys(extras, vector)
        return shapes

    def dropout_of(self, name: str) -> float:
        """Return the dropout probability of an adapter now: 0 outside training."""
        if not self.training:
            return 0.0
        dropout = self.lora_dropout[name]
        return dropout.p if isinstance(dropout, nn.Dropout) else 0.0

    # other values in place

    def check_room(self, name: str, rank: int | None) -> None:
        """Raise ConfigError if an adapter's factors cannot be padded to `rank`."""
        if rank is not None and rank < self.r[name]:
            raise ConfigError(
                f"target_rank is {rank}, and adapter {name!r} has rank {self.r[name]} at {self.path!r}; "
                "take the highest rank among the adapters to come."
            )

    def make_room(self, name: str, rank: int | None) -> None:
        """Pad an adapter's factors with zeros to `rank`, and make its scaling a tensor; no output changes."""
        if rank is not None and rank != self.r[name]:
            for (key, tensor), shape in zip(
                self.tensors(name).items(), self.factor_shapes(rank), strict=False
            ):
                self._place(name, key, padded(tensor.detach(), shape))
                self.tensors(name)[key].requires_grad_(tensor.requires_grad)
            self.r[name] = rank
        device = self.original_weight.device
        self.scaling[name] = torch.tensor(float(self.scaling[name]), device=device)  # type: ignore[assignment]

    def silence(self, name: str) -> None:
        """Make an adapter change nothing: B is zeros, and what its variant keeps beside it starts anew."""
        tensors = self.tensors(name)
        with torch.no_grad():
            for key in tensors:
                if key.startswith(self.factor_names[1]):
                    tensors[key].zero_()
            for key, value in self._first_extras(name).items():
                tensors[key].copy_(value)
