"""An adapter taken apart into modules, and put together again from new factors.

Shape key: I in, O out, R rank.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from loralab.core.adapter import Adapter, Factors
from loralab.core.config import LoraConfig
from loralab.errors import AdapterError

__all__ = [
    "Part",
    "Place",
    "assemble",
    "explicit_targets",
    "joint_targets",
    "parts_of",
    "rest_of",
    "with_scales",
]

_ENDINGS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_REWRITES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


@dataclass(frozen=True)
class Place:
    """How the factors of one module lie in a file."""

    lookup: bool = False
    """Whether the module is an embedding."""
    kernel: tuple[int, ...] = ()
    """A convolution's A is [R, *kernel], its channels in and its kernel; empty for a matrix."""

    def tensors(self, path: str, a_RI: Tensor, b_OR: Tensor) -> dict[str, Tensor]:
        """Return the tensors that a file holds for these factors at `path`."""
        a, b = _ENDINGS[2:] if self.lookup else _ENDINGS[:2]
        if self.kernel:
            a_RI = a_RI.reshape(-1, *self.kernel)
            b_OR = b_OR.reshape(*b_OR.shape, *(1 for _ in self.kernel[1:]))
        return {path + a: a_RI.contiguous(), path + b: b_OR.contiguous()}


@dataclass(frozen=True)
class Part:
    """One adapted module: its factors as matrices, and how they lie in a file."""

    factors: Factors
    place: Place

    @property
    def shape(self) -> tuple[int, int]:
        """[O, I] of the delta."""
        return self.factors.b_OR.shape[0], self.factors.a_RI.shape[1]


def parts_of(adapter: Adapter, doing: str) -> dict[str, Part]:
    """Return the adapted modules by path.

    Raises:
        AdapterError: the adapter has no factors; those of a module do not multiply (a grouped convolution);
            or it was initialised by a method that also rewrote the base, so it means nothing by itself.
            `doing` says in the message what was to be done.
    """
    init = adapter.config.init_lora_weights
    if isinstance(init, str) and init.startswith(_REWRITES_BASE):
        raise AdapterError(
            f"cannot {doing}: init_lora_weights={init!r} changed the base's weights for this very rank. "
            "Save the adapter as a plain one first (PEFT: path_initial_model_for_weight_conversion)."
        )
    found = {}
    for path, factors in adapter.modules().items():
        if factors.b_OR.shape[1] != factors.rank:
            raise AdapterError(
                f"cannot {doing}: the factors of {path!r} do not multiply, B is {list(factors.b_OR.shape)} "
                f"and A is {list(factors.a_RI.shape)}, as in a grouped layer. Leave that module out."
            )
        tensor = adapter.tensors.get(f"{path}.lora_A.weight")
        kernel = tuple(tensor.shape[1:]) if tensor is not None and tensor.dim() > 2 else ()
        found[path] = Part(factors, Place(tensor is None, kernel))
    if not found:
        raise AdapterError(f"cannot {doing}: the adapter has no pair of factors A and B.")
    return found


def rest_of(adapter: Adapter) -> dict[str, Tensor]:
    """Return the tensors that are no factors: biases, magnitudes, modules that are saved in full."""
    return {key: tensor for key, tensor in adapter.tensors.items() if not key.endswith(_ENDINGS)}


def assemble(
    config: LoraConfig,
    factors: Mapping[str, tuple[Place, Tensor, Tensor]],
    rest: Mapping[str, Tensor],
    targets: Mapping[str, object] | None = None,
) -> Adapter:
    """Return an adapter of (place, a_RI, b_OR) by path, whose deltas are B A: every scaling is 1, alpha = r.

    `targets` replaces the config's target fields, see `joint_targets`.
    """
    ranks = {path: a_RI.shape[0] for path, (_, a_RI, _) in factors.items()}
    config = with_scales(config, {path: (rank, rank) for path, rank in ranks.items()})
    config = dataclasses.replace(config, use_rslora=False, **(targets or {}))  # type: ignore[arg-type]
    tensors = dict(rest)
    for path, (place, a_RI, b_OR) in factors.items():
        tensors |= place.tensors(path, a_RI, b_OR)
    return Adapter(config, tensors)


def with_scales(config: LoraConfig, scales: Mapping[str, tuple[int, float]]) -> LoraConfig:
    """Return the config with the (rank, alpha) of each module: the commonest, and patterns for others."""
    (rank, alpha), _ = Counter(scales.values()).most_common(1)[0]
    # "^" holds a key to the whole path, for PEFT's readers too: one path may end another.
    others = {f"^{re.escape(path)}": pair for path, pair in scales.items() if pair != (rank, alpha)}
    return dataclasses.replace(
        config,
        r=rank,
        lora_alpha=alpha,
        rank_pattern={key: r for key, (r, _) in others.items() if r != rank},
        alpha_pattern={key: a for key, (_, a) in others.items() if a != alpha},
    )


def explicit_targets(paths: Collection[str]) -> dict[str, object]:
    """Return target fields that name each of `paths` in full."""
    return dict.fromkeys(_TARGETS) | {"target_modules": set(paths)}


def joint_targets(configs: Sequence[LoraConfig], paths: Collection[str]) -> dict[str, object]:
    """Return target fields that stand for `paths`, all the modules that the configs target together.

    The configs' own words where they can be joined, else the whole paths.
    """
    first = {name: getattr(configs[0], name) for name in _TARGETS}
    if all({name: getattr(config, name) for name in _TARGETS} == first for config in configs):
        return first
    names = [c.target_modules for c in configs if not c.exclude_modules and c.layers_to_transform is None]
    lists = [set(words) for words in names if isinstance(words, set | list)]
    if len(lists) < len(configs):
        return explicit_targets(paths)
    return explicit_targets(set().union(*lists))
