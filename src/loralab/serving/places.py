"""Where adapters go in a base model, and adapters brought into the form in which they are served.

Shape key: I in, O out, R rank.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.adapter import Adapter, Factors
from loralab.core.layers import is_linear
from loralab.core.tying import tied_paths
from loralab.core.variants import State
from loralab.core.variants.dora import row_norms
from loralab.errors import AdapterError

__all__ = ["Fitted", "Part", "Place", "Places", "stacked"]

_MAGNITUDE = ".lora_magnitude_vector"
_OUTER_BIAS = ".lora_B.bias"
_FACTOR_ENDINGS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
_UNSERVED = ("target_parameters", "trainable_token_indices", "layer_replication")
"""Settings whose adapters need another model than the base."""
_LARGEST = 1e10
"""No entry of scaling * B A may be larger."""
_ALIGNED = 64
"""Each tensor of a buffer begins at a multiple of so many bytes."""


@dataclass(frozen=True)
class Place:
    """A module that adapters can change."""

    path: str
    module: nn.Module
    weight: Tensor
    """The base's own, whatever the module shows."""
    inputs: int
    """For an embedding, the size of the vocabulary."""
    outputs: int
    embeds: bool = False
    transposed: bool = False
    """Whether the weight lies as [I, O], as an embedding's and GPT-2's does."""
    bias: Tensor | None = None
    plain: bool = True
    """Whether the weight is plain numbers, not quantized."""

    @property
    def scale(self) -> float:
        """What an embedding multiplies its output with, as Gemma's does."""
        return float(getattr(self.module, "embed_scale", 1.0))

    def weight_OI(self) -> Tensor:
        """Return the base weight, [O, I], a view."""
        weight = self.weight.detach()
        return weight.t() if self.transposed else weight


@dataclass(frozen=True, eq=False)
class Part:
    """What an adapter does in one place: out = gain * (W x + scaling * B A x + ...) as its variant says."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float
    gain_O: Tensor | None = None
    """DoRA: m / |W + s B A| for each output, fp32."""
    bias_O: Tensor | None = None
    """What is added, already scaled."""

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return self.a_RI.shape[0]


@dataclass(frozen=True, eq=False)
class Fitted:
    """An adapter held in memory in one piece, checked against a base."""

    name: str
    identity: str
    """The sha256 of weights, config and scale."""
    parts: Mapping[str, Part]
    """By the path of the module."""
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameters of the base that it replaces, by their paths (`modules_to_save`, trained biases)."""
    buffer: Tensor | None = None
    """The memory that all tensors lie in."""
    more_bytes: int = 0

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max((part.rank for part in self.parts.values()), default=0)

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return (self.buffer.nbytes if self.buffer is not None else 0) + self.more_bytes

    @property
    def mixable(self) -> bool:
        """Whether it can run beside others in one batch: it must not replace parameters of the base."""
        return not self.whole


class Places:
    """The modules of a base that adapters can change: its linear layers and embeddings."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.by_path = {path: place for path, m in self.modules.items() if (place := _place(path, m))}
        self._groups: dict[str, tuple[tuple[str, ...], int]] = {path: ((path,), 0) for path in self.by_path}

    def group_of(self, path: str) -> tuple[tuple[str, ...], int]:
        """Return the paths of the layers that have one input with this one, and its number among them."""
        return self._groups[path]

    @torch.no_grad()
    def find_groups(self) -> None:
        """Run the model on two tokens, and see which linear layers have the same input."""
        seen: list[tuple[Tensor, str]] = []

        def watch(path: str) -> Callable[..., None]:
            return lambda module, args: seen.append((args[0], path))

        linear = [place for place in self.by_path.values() if not place.embeds]
        with contextlib.ExitStack() as hooks:
            for place in linear:
                hooks.callback(place.module.register_forward_pre_hook(watch(place.path)).remove)
            self.model(
                input_ids=torch.zeros((1, 2), dtype=torch.long, device=next(self.model.parameters()).device)
            )
        by_input: dict[int, list[str]] = {}
        for given, path in seen:
            by_input.setdefault(id(given), []).append(path)
        for paths in by_input.values():
            group = tuple(dict.fromkeys(paths))
            self._groups |= {path: (group, index) for index, path in enumerate(group)}

    def fit(self, adapter: Adapter, name: str, pinned: bool = False) -> Fitted:
        """Return the adapter in one buffer of memory, every tensor of it held against the base.

        Raises:
            AdapterError: a tensor has no place, another shape than that place needs, or is not finite; or the
                adapter is of a kind that has to be merged before it can be served.
        """
        config = adapter.config
        for which in _UNSERVED:
            if getattr(config, which):
                raise AdapterError(
                    f"adapter {name!r} uses {which}; merge it into a model of its own to serve it."
                )
        self._check(adapter, name)
        tensors, buffer = _in_one(adapter.tensors, pinned)
        held = Adapter(config, tensors)
        parts = {path: self._part(path, factors, held) for path, factors in held.modules().items()}
        if config.ensure_weight_tying:
            parts |= self._tied(parts)
        whole = dict(_whole(tensors, self.parameters))
        for path, part in parts.items():
            self.check_range(path, part, name)
            if whole and not self.by_path[path].plain:
                raise AdapterError(
                    f"adapter {name!r} replaces parameters beside a quantized {path}; merge it to serve it."
                )
        identity = hashlib.sha256(f"{adapter.digest()} 1.0".encode()).hexdigest()
        more = sum(part.gain_O.nbytes for part in parts.values() if part.gain_O is not None)
        return Fitted(name, identity, parts, whole, buffer, more)

    def _check(self, adapter: Adapter, name: str) -> None:
        for key, tensor in adapter.tensors.items():
            if not tensor.is_floating_point():
                raise AdapterError(
                    f"adapter {name!r}: {key} holds {tensor.dtype}, not floating-point numbers."
                )
            if not bool(torch.isfinite(tensor).all()):
                raise AdapterError(f"adapter {name!r}: {key} holds numbers that are not finite.")
        factors = adapter.modules()
        if not factors:
            raise AdapterError(f"adapter {name!r} changes no module of this base.")
        known = {
            f"{path}{ending}" for path in factors for ending in (*_FACTOR_ENDINGS, _MAGNITUDE, _OUTER_BIAS)
        }
        replaced = dict(_whole(adapter.tensors, self.parameters))
        replacing = {key for key in adapter.tensors if _parameter(key) in replaced}
        for key in adapter.tensors:
            if key not in known and key not in replacing:
                raise AdapterError(
                    f"adapter {name!r}: {key} has no place in this base; is it for another model?"
                )
        for path, part in factors.items():
            self._check_shapes(path, part, adapter, name)
            if part.rank != (rank := adapter.config.rank_of(path)):
                raise AdapterError(f"adapter {name!r}: {path} has rank {part.rank}, its config says {rank}.")
        for key, value in replaced.items():
            if value.shape != self.parameters[key].shape:
                raise AdapterError(
                    f"adapter {name!r}: {key} is {list(value.shape)}, this base has "
                    f"{list(self.parameters[key].shape)}."
                )

    def _check_shapes(self, path: str, part: Factors, adapter: Adapter, name: str) -> None:
        place, config = self.by_path.get(path), adapter.config
        if place is None:
            kind = type(self.modules[path]).__name__ if path in self.modules else None
            what = f"is a {kind}, which cannot be served with an adapter" if kind else "is not in this base"
            raise AdapterError(f"adapter {name!r}: {path} {what}.")
        rank, inputs = part.a_RI.shape
        wanted = (rank, place.inputs, place.outputs, rank)
        if (rank, inputs, *part.b_OR.shape) != wanted:
            raise AdapterError(
                f"adapter {name!r}: {path} has A {list(part.a_RI.shape)} and B {list(part.b_OR.shape)}; "
                f"this base needs A [{rank}, {place.inputs}] and B [{place.outputs}, {rank}]."
            )

        for ending, wanted_too in ((_MAGNITUDE, config.use_dora), (_OUTER_BIAS, config.lora_bias)):
            vector = adapter.tensors.get(path + ending)
            if vector is None and wanted_too:
                raise AdapterError(f"adapter {name!r}: {path}{ending} is missing; its config asks for it.")
            if vector is not None and vector.numel() != place.outputs:
                raise AdapterError(
                    f"adapter {name!r}: {path}{ending} is {list(vector.shape)}; this base needs "
                    f"[{place.outputs}]."
                )

    def check_range(self, path: str, part: Part, name: str) -> None:
        """Refuse what is finite in the file and not in use, where it would reach the answers of others.

        Requests of one step share their attention, where an infinite number is NaN for all, masked or not.

        Raises:
            AdapterError: a number is not finite in the base's dtype, or the delta may have such large ones.
        """
        dtype = self.by_path[path].weight.dtype if self.by_path[path].plain else torch.float32
        used = part.a_RI.to(dtype), (part.b_OR * part.scaling).to(dtype), part.gain_O, part.bias_O
        if not all(bool(torch.isfinite(tensor).all()) for tensor in used if tensor is not None):
            raise AdapterError(f"adapter {name!r}: {path} has numbers that are not finite in {dtype}.")
        a_RI, b_OR = used[:2]
        largest = float(a_RI.abs().amax()) * float(b_OR.abs().amax()) * part.rank
        if largest > min(_LARGEST, torch.finfo(dtype).max / 2):
            raise AdapterError(f"adapter {name!r}: {path} adds up to {largest:.1g}, too large to serve.")

    def _part(self, path: str, factors: Factors, held: Adapter) -> Part:
        magnitude, bias = held.tensors.get(path + _MAGNITUDE), held.tensors.get(path + _OUTER_BIAS)
        gain = None
        if magnitude is not None:
            place = self.by_path[path]
            if not place.plain:
                raise AdapterError(f"{path}: DoRA over a quantized base is not served; merge the adapter.")
            state = State(
                (),
                place.weight_OI,
                factors.a_RI,
                factors.b_OR,
                factors.scaling,
                {},
                None,
                lambda vector: vector,
            )
            gain = magnitude.float().flatten() / row_norms(state).float()
        scaled = None if bias is None else bias.float() * factors.scaling
        return Part(factors.a_RI, factors.b_OR, factors.scaling, gain, scaled)

    def _tied(self, parts: Mapping[str, Part]) -> dict[str, Part]:
        """Return the parts of the modules that share the embedding's weight: A and B change places there."""
        more = {}
        for source, part in parts.items():
            if self.by_path[source].embeds:
                for path in tied_paths(self.modules, source):
                    if path in self.by_path and path not in parts:
                        more[path] = Part(part.b_OR.t(), part.a_RI.t(), part.scaling)
        return more


def stacked(weighted: Sequence[tuple[Fitted, float]], name: str) -> Fitted:
    """Return the weighted sum of adapters, exactly: along the rank their factors stand side by side.

    Raises:
        AdapterError: one of them is no plain sum of products (DoRA, biases, whole modules).
    """
    for fitted, _ in weighted:
        if fitted.whole or any(p.gain_O is not None or p.bias_O is not None for p in fitted.parts.values()):
            raise AdapterError(
                f"{fitted.name!r} is more than products B A, so it cannot be weighted or stacked."
            )
    parts: dict[str, Part] = {}
    for path in dict.fromkeys(path for fitted, _ in weighted for path in fitted.parts):
        own = [(fitted.parts[path], weight) for fitted, weight in weighted if path in fitted.parts]
        if len(own) == 1:
            (part, weight), *_ = own
            parts[path] = Part(part.a_RI, part.b_OR, part.scaling * weight)
        else:
            a_RI = torch.cat([part.a_RI.float() for part, _ in own])
            b_OR = torch.cat([part.b_OR.float() * (part.scaling * weight) for part, weight in own], dim=1)
            parts[path] = Part(a_RI, b_OR, 1.0)
    told = " ".join(f"{fitted.identity}*{weight!r}" for fitted, weight in weighted)
    more = sum(p.a_RI.nbytes + p.b_OR.nbytes for p in parts.values()) if len(weighted) > 1 else 0
    return Fitted(name, hashlib.sha256(told.encode()).hexdigest(), parts, more_bytes=more)


def _place(path: str, module: nn.Module) -> Place | None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if isinstance(module, nn.Embedding):
        rows, width = weight.shape
        return Place(path, module, weight, rows, width, embeds=True, transposed=True)
    if not is_linear(module):
        return None
    bias = getattr(module, "bias", None)
    if type(module).__name__ == "Conv1D":
        rows, width = weight.shape
        return Place(path, module, weight, rows, width, transposed=True, bias=bias)
    plain = type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point()
    inputs, outputs = int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    return Place(path, module, weight, inputs, outputs, bias=bias, plain=plain)


def _parameter(key: str) -> str:
    """Return the path of the parameter that a tensor of a file stands for, if it replaces one whole."""
    return key.replace(".modules_to_save.", ".").replace(".base_layer.", ".")


def _whole(tensors: Mapping[str, Tensor], parameters: Mapping[str, Any]) -> Iterable[tuple[str, Tensor]]:
    for key, tensor in tensors.items():
        if _parameter(key) in parameters:
            yield _parameter(key), tensor


def _in_one(tensors: Mapping[str, Tensor], pinned: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Return copies of the tensors that all lie in one piece of memory, and that piece, as bytes."""
    sizes = {key: -(-tensor.nbytes // _ALIGNED) * _ALIGNED for key, tensor in tensors.items()}
    buffer = torch.empty(sum(sizes.values()), dtype=torch.uint8, pin_memory=pinned)
    copies, at = {}, 0
    for key, tensor in tensors.items():
        view = buffer[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        view.copy_(tensor)
        copies[key] = view
        at += sizes[key]
    return copies, buffer
