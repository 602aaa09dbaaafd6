"""A weighted sum of adapters, and the other ways in which people mix them.

Shape key: I in, O out, R rank, N adapters.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.core.combine import Term, mixed_bias, mixed_factors, mixed_spectrum, side_by_side
from loralab.core.config import LoraConfig
from loralab.core.derived import joint_targets
from loralab.core.mixing import MIXES, Mix, sign_conflict
from loralab.core.svd import product_svd
from loralab.errors import AdapterError, ConfigError, did_you_mean
from loralab.tools.parts import Made, Part, assemble, mirrored, parts_of, rest_of, rounded, tied_parts

__all__ = ["METHODS", "Combined", "CombinedLayer", "combine"]

METHODS = ("exact", "concatenate", "factors", *MIXES)
_BIAS = ".lora_B.bias"


@dataclass(frozen=True)
class CombinedLayer:
    """How well the deltas of one module agree, and what mixing them cost."""

    module: str
    rank: int
    conflict: float
    """The share of entries at which two of the weighted deltas have opposite signs."""
    cosine: float
    """The cosine between the weighted deltas, the mean over all pairs; 1 where one adapter is alone."""
    error: float
    """|written - wanted| / |wanted|: what cutting to the rank cost; wanted is the method's uncut result."""
    distance: float
    """|written - true| / |true|, where true is the weighted sum of the deltas."""


@dataclass(frozen=True)
class Combined:
    """The combined adapter and what happened in each module."""

    adapter: Adapter
    layers: tuple[CombinedLayer, ...]


def combine(
    adapters: Mapping[str, Adapter],
    weights: Sequence[float],
    method: str = "exact",
    r: int | None = None,
    density: float | None = None,
    seed: int = 0,
) -> Combined:
    """Return one adapter made of several, by name, each with a weight. Ranks, targets and scales may differ.

    Methods:
        exact: the weighted sum of the deltas, as the best adapter of rank `r`; without `r` at the smallest
            rank that holds all of it, so nothing but rounding is lost.
        concatenate: the same sum with the factors side by side; the rank is the sum of the ranks.
        factors: A's and B's summed apart, each times sqrt(weight * scaling): PEFT's "linear". It is not the
            sum of the deltas, B1 A2 and B2 A1 get in; `distance` says by how much. Ranks must be equal.
        ties, dare, dare_ties, magnitude_prune: the deltas pruned to `density` and mixed entry by entry (see
            `Mix`), then cut to rank `r` (by default the sum of the ranks), which is not without loss.

    Biases of B are mixed alike. A head that is tied to its embedding in all of them stays so.

    Raises:
        ConfigError: an unknown method, a number that does not fit it, or not one weight for each adapter.
        AdapterError: the adapters cannot be combined; says which, and why.
    """
    _check(adapters, weights, method, r, density)
    generator = torch.Generator().manual_seed(seed)
    mix = Mix(method if method in MIXES else "sum", density, generator=generator)
    parts = {name: parts_of(adapter, f"combine {name!r}") for name, adapter in adapters.items()}
    rest = _common_rest(adapters)
    ties = _common_ties(parts)
    config = _tied_or_not(_common_config(adapters, rest), adapters, parts, ties)
    paths = list(dict.fromkeys(path for found in parts.values() for path in found))
    weighted = list(zip(parts.items(), weights, strict=True))
    factors: dict[str, Made] = {}
    layers: dict[str, CombinedLayer] = {}
    for path in (path for path in paths if path not in ties):
        here = [(name, found[path], w) for (name, found), w in weighted if path in found]
        _check_shapes(path, [(name, part) for name, part, _ in here])
        terms: list[Term] = [(part.factors, weight) for _, part, weight in here]
        a_RI, b_OR, error = _combined(terms, method, r, mix)
        factors[path] = (here[0][1].place, *rounded(path, (a_RI, b_OR), terms[0][0].a_RI.dtype))
        layers[path] = _layer(path, terms, factors[path][1:], error)
        if config.lora_bias:
            biases = [adapters[name].tensors.get(path + _BIAS) for name, _, _ in here]
            rest[path + _BIAS] = _bias(path, here[0][1], terms, biases, mix)
    factors |= mirrored(ties, factors)
    targets = joint_targets([adapter.config for adapter in adapters.values()], paths)
    told = tuple(dataclasses.replace(layers[ties.get(path, path)], module=path) for path in paths)
    return Combined(assemble(config, factors, rest, targets), told)


def _common_ties(parts: Mapping[str, Mapping[str, Part]]) -> dict[str, str]:
    """Return the heads that follow an embedding in every adapter that has one of the two."""
    own = {name: tied_parts(found) for name, found in parts.items()}
    return {
        head: source
        for ties in own.values()
        for head, source in ties.items()
        if all(
            own[name].get(head) == source for name, found in parts.items() if head in found or source in found
        )
    }


def _tied_or_not(
    config: LoraConfig,
    adapters: Mapping[str, Adapter],
    parts: Mapping[str, Mapping[str, Part]],
    ties: Mapping[str, str],
) -> LoraConfig:
    """Return the config, which may ask for ties only where adapted embeddings and heads still have them."""
    if not any(part.place.lookup for found in parts.values() for part in found.values()):
        return config
    wanted = any(adapter.config.ensure_weight_tying for adapter in adapters.values())
    return dataclasses.replace(config, ensure_weight_tying=wanted and bool(ties))


def _combined(terms: Sequence[Term], method: str, r: int | None, mix: Mix) -> tuple[Tensor, Tensor, float]:
    """Return (a_RI, b_OR, the relative error made by cutting)."""
    if method == "factors":
        return (*mixed_factors(terms, mix), 0.0)
    if method == "concatenate":
        return (*side_by_side(terms), 0.0)
    spectrum = mixed_spectrum(terms, mix, r)
    return (*spectrum.factors(), spectrum.error)


def _bias(path: str, part: Part, terms: Sequence[Term], biases: Sequence[Tensor | None], mix: Mix) -> Tensor:
    if part.place.lookup:
        raise AdapterError(f"{path!r} is an embedding, which cannot have the lora_bias of the others.")
    if any(bias is not None for bias in biases):
        return mixed_bias(terms, biases, mix)
    return torch.zeros(part.shape[0], dtype=part.factors.b_OR.dtype)


def _layer(path: str, terms: Sequence[Term], written: tuple[Tensor, Tensor], error: float) -> CombinedLayer:
    a_true, b_true = side_by_side(terms)
    a_RI, b_OR = (factor.double() for factor in written)
    true = product_svd(a_true, b_true).norm
    between = product_svd(torch.cat([a_true, a_RI]), torch.cat([b_true, -b_OR], dim=1)).norm
    distance = between / true if true else float(between > 0)
    factors = [dataclasses.replace(f, scaling=f.scaling * weight) for f, weight in terms]
    pairs = [(one, two) for i, one in enumerate(factors) for two in factors[i + 1 :]]
    cosines = [one.cosine(two) for one, two in pairs]
    cosine = sum(cosines) / len(cosines) if cosines else 1.0
    return CombinedLayer(path, a_RI.shape[0], sign_conflict(factors), cosine, error, distance)


def _check(
    adapters: Mapping[str, Adapter],
    weights: Sequence[float],
    method: str,
    r: int | None,
    density: float | None,
) -> None:
    if method not in METHODS:
        raise ConfigError(
            f"unknown method {method!r}; known are {', '.join(METHODS)}.{did_you_mean(method, METHODS)}"
        )
    if not adapters or len(weights) != len(adapters):
        raise ConfigError(f"{len(adapters)} adapters and {len(weights)} weights; expected one for each.")
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        raise ConfigError(f"weights are {list(weights)}; expected numbers, not all of them 0.")
    if r is not None and (r < 1 or method in ("concatenate", "factors")):
        raise ConfigError(f"r is {r}; method {method!r} {'needs 1 or more' if r < 1 else 'sets it itself'}.")
    if density is not None and method not in MIXES:
        raise ConfigError(f"method {method!r} has no density.")
    if method == "factors":
        ranks = {name: {f.rank for f in a.modules().values()} for name, a in adapters.items()}
        if len(set().union(*ranks.values())) > 1:
            told = ", ".join(f"{name} {'/'.join(map(str, sorted(found)))}" for name, found in ranks.items())
            raise AdapterError(f"method 'factors' needs one rank everywhere; here it is {told}.")


def _check_shapes(path: str, here: Sequence[tuple[str, Part]]) -> None:
    first, part = here[0]
    for name, other in here[1:]:
        if (other.shape, other.place) != (part.shape, part.place):
            raise AdapterError(
                f"module {path!r} is {list(other.shape)} in {name!r} and {list(part.shape)} in {first!r}; "
                "they were trained on different bases."
            )


def _common_rest(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Return the tensors that are no factors, which all must have alike: there is no sum of them."""
    rests = {
        name: {key: t for key, t in rest_of(adapter).items() if not key.endswith(_BIAS)}
        for name, adapter in adapters.items()
    }
    (first, common), *others = rests.items()
    for name, rest in rests.items():
        for key in rest:
            if key.endswith(".lora_magnitude_vector"):
                raise AdapterError(
                    f"{name!r} has a DoRA magnitude, {key}: its delta is no product B A and cannot be "
                    "summed. Merge it with 'loralab export merged' and extract a plain adapter from that."
                )
    for name, rest in others:
        for key in common.keys() | rest.keys():
            if key not in common or key not in rest or not torch.equal(common[key], rest[key]):
                raise AdapterError(
                    f"{key} is saved in full and differs between {first!r} and {name!r}; "
                    "tensors outside the factors cannot be combined, only kept where they are the same."
                )
    return common


def _common_config(adapters: Mapping[str, Adapter], rest: Mapping[str, Tensor]) -> LoraConfig:
    """Return the config of the sum, without its ranks and targets; `rest` are its tensors beside factors.

    What one adapter leaves unsaid, another one says. What changes no number may differ.
    """
    configs = {name: adapter.config for name, adapter in adapters.items()}
    config = next(iter(configs.values()))
    _check_bases({name: c.base_model_name_or_path for name, c in configs.items()})
    for field in ("layer_replication", "trainable_token_indices"):
        _check_alike(field, {name: getattr(c, field) or None for name, c in configs.items()})
    tasks = {name: c.task_type for name, c in configs.items() if c.task_type}
    _check_alike("task_type", tasks)
    biases = {name: c.bias for name, c in configs.items()}
    if any(key.endswith(".bias") for key in rest):
        _check_alike("bias", biases)
    return dataclasses.replace(
        config,
        base_model_name_or_path=_first_said(configs, "base_model_name_or_path"),
        revision=_first_said(configs, "revision"),
        task_type=_first_said(configs, "task_type"),
        auto_mapping=None if tasks else _first_said(configs, "auto_mapping"),
        bias=config.bias if len(set(biases.values())) == 1 else "none",
        lora_dropout=config.lora_dropout if len({c.lora_dropout for c in configs.values()}) == 1 else 0.0,
        lora_bias=any(c.lora_bias for c in configs.values()),
        init_lora_weights=True,
    )


def _first_said(configs: Mapping[str, LoraConfig], field: str) -> Any:
    """Return the first value of a field that is not left empty; None if all leave it."""
    return next((value for c in configs.values() if (value := getattr(c, field))), None)


def _check_alike(field: str, values: Mapping[str, object]) -> None:
    for (first, one), (name, two) in pairwise(values.items()):
        if one != two:
            raise AdapterError(f"{field} is {one!r} in {first!r} and {two!r} in {name!r}.")


def _check_bases(bases: Mapping[str, str | None]) -> None:
    """Refuse adapters of different bases; one folder may be spelt in several ways."""
    said = {name: base for name, base in bases.items() if base}
    for (first, one), (name, two) in pairwise(said.items()):
        if os.path.realpath(one) != os.path.realpath(two):
            raise AdapterError(
                f"{first!r} was trained on {one!r} and {name!r} on {two!r}; deltas of different bases have "
                "no common meaning. If these are one base, name it alike in adapter_config.json."
            )
