"""An adapter taken apart into modules, and put together again from new factors.

Shape key: I in, O out, R rank.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loralab.core.adapter import Adapter, Factors
from loralab.core.config import LoraConfig
from loralab.core.derived import with_scales
from loralab.core.finite import check_finite, not_finite
from loralab.errors import AdapterError

__all__ = [
    *("Made", "Part", "Place", "assemble", "check_finite", "mirrored", "parts_of", "rest_of", "rounded"),
    "tied_parts",
]

_ENDINGS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
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
        AdapterError: the adapter has no factors; those of a module do not multiply (a grouped convolution)
            or are those of many experts; numbers are not finite; or it was initialised by a method that also
            rewrote the base, so it means nothing by itself. `doing` says what was to be done.
    """
    if adapter.config.target_parameters:
        raise AdapterError(
            f"cannot {doing}: target_parameters keep the factors of many experts in one tensor, which are no "
            "product together."
        )
    init = adapter.config.init_lora_weights
    if isinstance(init, str) and init.startswith(_REWRITES_BASE):
        raise AdapterError(
            f"cannot {doing}: init_lora_weights={init!r} changed the base's weights for this very rank. "
            "Save the adapter as a plain one first (PEFT: path_initial_model_for_weight_conversion)."
        )
    check_finite(adapter, doing)
    found = {}
    for path, factors in adapter.modules().items():
        if factors.b_OR.shape[1] != factors.rank:
            raise AdapterError(
                f"cannot {doing}: the factors of {path!r} do not multiply, B is {list(factors.b_OR.shape)} "
                f"and A is {list(factors.a_RI.shape)}, as in a grouped layer. Leave that module out."
            )
        if not math.isfinite(factors.norm()):
            raise AdapterError(f"cannot {doing}: the delta of {path!r} is too large for any number.")
        tensor = adapter.tensors.get(f"{path}.lora_A.weight")
        kernel = tuple(tensor.shape[1:]) if tensor is not None and tensor.dim() > 2 else ()
        found[path] = Part(factors, Place(tensor is None, kernel))
    if not found:
        raise AdapterError(f"cannot {doing}: the adapter has no pair of factors A and B.")
    return found


Made = tuple[Place, Tensor, Tensor]
"""How new factors lie in a file, a_RI and b_OR."""


def tied_parts(parts: Mapping[str, Part]) -> dict[str, str]:
    """Return by path the embedding whose factors a module has the other way round, as a tied head does."""
    lookups = {path: part.factors for path, part in parts.items() if part.place.lookup}
    return {
        path: source
        for path, part in parts.items()
        for source, theirs in lookups.items()
        if part.place == Place()
        and torch.equal(part.factors.a_RI, theirs.b_OR.t())
        and torch.equal(part.factors.b_OR, theirs.a_RI.t())
    }


def mirrored(ties: Mapping[str, str], made: Mapping[str, Made]) -> dict[str, Made]:
    """Return the factors of modules that follow an embedding, as far as that has some."""
    return {path: (Place(), made[s][2].t(), made[s][1].t()) for path, s in ties.items() if s in made}


def rounded(path: str, factors: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return (a_RI, b_OR) of the module at `path` in a dtype.

    Raises:
        AdapterError: they have numbers too large for it.
    """
    a_RI, b_OR = (factor.to(dtype) for factor in factors)
    if not_finite(a_RI) or not_finite(b_OR):
        kind = str(dtype).removeprefix("torch.")
        raise AdapterError(f"the result at {path!r} has numbers too large for {kind}.")
    return a_RI, b_OR


def rest_of(adapter: Adapter) -> dict[str, Tensor]:
    """Return the tensors that are no factors: biases, magnitudes, modules that are saved in full."""
    return {key: tensor for key, tensor in adapter.tensors.items() if not key.endswith(_ENDINGS)}


def assemble(
    config: LoraConfig,
    factors: Mapping[str, Made],
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
