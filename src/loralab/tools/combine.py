"""A weighted sum of adapters, and the other ways in which people mix them.

Shape key: I in, O out, R rank, N adapters.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.svd import Cut, LowRank, leading_svd, product_svd
from loralab.errors import AdapterError, ConfigError, did_you_mean
from loralab.tools.mixing import MIXES, sign_conflict
from loralab.tools.parts import Part, assemble, joint_targets, parts_of, rest_of

__all__ = ["METHODS", "Combined", "CombinedLayer", "combine"]

METHODS = ("exact", "concatenate", "factors", *MIXES)


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
            `mixing`), then cut to rank `r` (by default the sum of the ranks), which is not without loss.

    Raises:
        ConfigError: an unknown method, a number that does not fit it, or not one weight for each adapter.
        AdapterError: the adapters cannot be combined; says which, and why.
    """
    _check(adapters, weights, method, r, density)
    parts = {name: parts_of(adapter, f"combine {name!r}") for name, adapter in adapters.items()}
    rest = _common_rest(adapters)
    config = _common_config(adapters)
    paths = list(dict.fromkeys(path for found in parts.values() for path in found))
    factors, layers = {}, []
    generator = torch.Generator().manual_seed(seed)
    for path in paths:
        here = [
            (name, parts[name][path], w)
            for name, w in zip(adapters, weights, strict=True)
            if path in parts[name]
        ]
        _check_shapes(path, [(name, part) for name, part, _ in here])
        terms = [(part, weight) for _, part, weight in here]
        a_RI, b_OR, error = _mixed(terms, method, r, density, generator)
        dtype = terms[0][0].factors.a_RI.dtype
        factors[path] = (terms[0][0].place, a_RI.to(dtype), b_OR.to(dtype))
        layers.append(_layer(path, terms, factors[path][1:], error))
    targets = joint_targets([adapter.config for adapter in adapters.values()], paths)
    return Combined(assemble(config, factors, rest, targets), tuple(layers))


def _mixed(
    terms: Sequence[tuple[Part, float]],
    method: str,
    r: int | None,
    density: float | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, float]:
    """Return (a_RI, b_OR, the relative error made by cutting)."""
    if method == "factors":
        return (*_summed_factors(terms), 0.0)
    if method == "concatenate":
        return (*_side_by_side(terms), 0.0)
    if method == "exact":
        spectrum = product_svd(*_side_by_side(terms))
        return _cut(spectrum, r or max(1, spectrum.numerical_rank))
    deltas = [part.factors.product() for part, _ in terms]
    mixed_OI = MIXES[method](deltas, [weight for _, weight in terms], density or 1.0, generator)
    return _cut(leading_svd(mixed_OI, Cut(r or sum(part.factors.rank for part, _ in terms))), None)


def _cut(spectrum: LowRank, rank: int | None) -> tuple[Tensor, Tensor, float]:
    kept = spectrum if rank is None else spectrum.cut(rank)
    return (*kept.factors(), kept.error)


def _side_by_side(terms: Sequence[tuple[Part, float]]) -> tuple[Tensor, Tensor]:
    """Return factors of the weighted sum: [w1 s1 B1, w2 s2 B2] [A1; A2] = w1 s1 B1 A1 + w2 s2 B2 A2."""
    a_RI = torch.cat([part.factors.a_RI.detach().double() for part, _ in terms])
    b_OR = torch.cat(
        [part.factors.b_OR.detach().double() * (w * part.factors.scaling) for part, w in terms], dim=1
    )
    return a_RI, b_OR


def _summed_factors(terms: Sequence[tuple[Part, float]]) -> tuple[Tensor, Tensor]:
    scales = [weight * part.factors.scaling for part, weight in terms]
    a = [
        p.factors.a_RI.double() * math.copysign(math.sqrt(abs(s)), s)
        for (p, _), s in zip(terms, scales, strict=True)
    ]
    b = [p.factors.b_OR.double() * math.sqrt(abs(s)) for (p, _), s in zip(terms, scales, strict=True)]
    return torch.stack(a).sum(0), torch.stack(b).sum(0)


def _layer(
    path: str, terms: Sequence[tuple[Part, float]], written: tuple[Tensor, Tensor], error: float
) -> CombinedLayer:
    a_true, b_true = _side_by_side(terms)
    a_RI, b_OR = (factor.double() for factor in written)
    true = product_svd(a_true, b_true).norm
    between = product_svd(torch.cat([a_true, a_RI]), torch.cat([b_true, -b_OR], dim=1)).norm
    distance = between / true if true else float(between > 0)
    factors = [dataclasses.replace(p.factors, scaling=p.factors.scaling * w) for p, w in terms]
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
    if (density is not None) != (method in MIXES):
        which = "needs a density, the share of entries kept" if method in MIXES else "has no density"
        raise ConfigError(f"method {method!r} {which}.")
    if density is not None and not 0 < density <= 1:
        raise ConfigError(f"density is {density}; expected a share above 0, up to 1.")
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
    rests = {name: rest_of(adapter) for name, adapter in adapters.items()}
    (first, common), *others = rests.items()
    for name, rest in rests.items():
        for key in rest:
            if key.endswith(("lora_magnitude_vector", ".lora_B.bias")):
                kind = "a DoRA magnitude" if key.endswith("vector") else "a bias of B"
                raise AdapterError(
                    f"{name!r} has {kind}, {key}: its delta is no product B A and cannot be summed."
                )
    for name, rest in others:
        for key in common.keys() | rest.keys():
            if key not in common or key not in rest or not torch.equal(common[key], rest[key]):
                raise AdapterError(
                    f"{key} is saved in full and differs between {first!r} and {name!r}; "
                    "tensors outside the factors cannot be combined, only kept where they are the same."
                )
    return common


def _common_config(adapters: Mapping[str, Adapter]) -> LoraConfig:
    (first, adapter), *others = adapters.items()
    config = adapter.config
    for name, other in others:
        bases = [c.base_model_name_or_path for c in (config, other.config)]
        if all(bases) and bases[0] != bases[1]:
            raise AdapterError(
                f"{first!r} was trained on {bases[0]!r} and {name!r} on {bases[1]!r}; deltas of different "
                "bases have no common meaning. If these are one base, name it alike in adapter_config.json."
            )
        for field in ("fan_in_fan_out", "bias", "task_type"):
            values = [getattr(c, field) for c in (config, other.config)]
            if values[0] != values[1]:
                raise AdapterError(f"{field} is {values[0]!r} in {first!r} and {values[1]!r} in {name!r}.")
        if config.lora_dropout != other.config.lora_dropout:
            config = dataclasses.replace(config, lora_dropout=0.0)
    base = next(
        (a.config.base_model_name_or_path for a in adapters.values() if a.config.base_model_name_or_path),
        None,
    )
    return dataclasses.replace(config, base_model_name_or_path=base, init_lora_weights=True)
