"""A weighted combination of a model's adapters, as one more adapter of the model.

Shape key: I in, O out, R rank.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loralab.core.adapter import Adapter, Factors
from loralab.core.combine import (
    Term,
    mixed_bias,
    mixed_delta,
    mixed_factors,
    mixed_spectrum,
    side_by_side,
)
from loralab.core.config import LoraConfig
from loralab.core.derived import joint_targets, with_scales
from loralab.core.inits import changes_base
from loralab.core.layers import LoraLayer
from loralab.core.mixing import Mix
from loralab.core.svd import exact_svd
from loralab.errors import AdapterError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from loralab.core.model import LoraModel

__all__ = ["COMBINATION_TYPES", "add_weighted_adapter"]

_APART = {
    "linear": "sum",
    "ties": "ties",
    "dare_linear": "dare",
    "dare_ties": "dare_ties",
    "magnitude_prune": "magnitude_prune",
}
"""Types that mix A's and B's apart."""

_WHOLE = {"exact": "sum", "svd": "sum"} | {f"{t}_svd": mix for t, mix in _APART.items() if t != "linear"}
"""Types that mix the deltas and cut the result to a rank."""

COMBINATION_TYPES = ("cat", *_APART, *_WHOLE)
_DRIVERS = (None, "gesvd", "gesvdj", "gesvda")


def add_weighted_adapter(
    model: "LoraModel",
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = "svd",
    svd_rank: int | None = None,
    svd_clamp: float | None = None,
    svd_full_matrices: bool = True,
    svd_driver: str | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
) -> None:
    """Attach the combination of several adapters under a new name; it is not made active, nor trainable.

    Types:
        cat: the weighted sum of the deltas, factors side by side; the rank is the sum of the ranks.
        svd: the best adapter of rank `svd_rank` (by default the largest of the ranks) for that sum.
        exact: the same; without `svd_rank` at the smallest rank that holds the whole sum.
        linear, ties, dare_linear, dare_ties, magnitude_prune: A's and B's mixed apart, see `mixed_factors`.
            The result is not the sum of the deltas; ranks must be equal.
        ties_svd, dare_linear_svd, dare_ties_svd, magnitude_prune_svd: the deltas mixed, then cut as in svd.

    `density` is the share of entries that ties, dare and magnitude_prune keep; dare draws from torch's own
    generator. `svd_clamp` limits what the SVD gave to this quantile of it. `svd_full_matrices` and
    `svd_driver` choose how PEFT computes an SVD, which changes no result, and are only accepted. Biases of
    B are mixed as the deltas are.

    Raises:
        ConfigError: an unknown type or a setting of no use to it, weights that do not fit, a name taken.
        AdapterError: there is no such adapter, or it cannot be combined; says which, and why.
    """
    if svd_driver not in _DRIVERS:
        raise ConfigError(f"svd_driver is {svd_driver!r}; expected one of {_DRIVERS}.")
    plan = _Plan(combination_type, svd_rank, svd_clamp, density, majority_sign_method)
    if not adapters or len(weights) != len(adapters):
        raise ConfigError(f"{len(adapters)} adapters and {len(weights)} weights; expected one for each.")
    if not all(math.isfinite(weight) for weight in weights):
        raise ConfigError(f"weights are {list(weights)}; expected numbers.")
    model._known(adapters)
    configs = [model.peft_config[name] for name in adapters]
    for name, config in zip(adapters, configs, strict=True):
        _check_config(name, config)
    model._check_name(adapter_name, configs[0])
    adapter = _weighted(model, list(zip(adapters, weights, strict=True)), plan)
    model.attach(adapter_name, adapter.config, adapter)


@dataclass(frozen=True)
class _Plan:
    """What is to be done, checked."""

    kind: str
    rank: int | None
    clamp: float | None
    density: float | None
    majority: str

    def __post_init__(self) -> None:
        if self.kind not in COMBINATION_TYPES:
            raise ConfigError(
                f"unknown combination_type {self.kind!r}; known are {', '.join(COMBINATION_TYPES)}."
                + did_you_mean(self.kind, COMBINATION_TYPES)
            )
        given = {
            "svd_rank": (self.rank, self.kind in _WHOLE),
            "svd_clamp": (self.clamp, self.kind in _WHOLE),
            "density": (self.density, self.mix_name != "sum"),
            "majority_sign_method": (
                None if self.majority == "total" else self.majority,
                "ties" in self.kind,
            ),
        }
        for name, (value, used) in given.items():
            if value is not None and not used:
                raise ConfigError(f"{name}={value!r} has no effect with combination_type {self.kind!r}.")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"svd_rank is {self.rank}; a rank is a whole number of at least 1.")
        if self.clamp is not None and not 0 < self.clamp <= 1:
            raise ConfigError(f"svd_clamp is {self.clamp}; expected a quantile above 0, up to 1.")
        _ = self.mix

    @property
    def mix_name(self) -> str:
        return (_APART | _WHOLE).get(self.kind, "sum")

    @property
    def mix(self) -> Mix:
        return Mix(self.mix_name, self.density, self.majority)

    def factors(self, terms: Sequence[Term]) -> tuple[Tensor, Tensor]:
        """Return (a_RI, b_OR) of the combination, whose scaling is 1."""
        if self.kind == "cat":
            return side_by_side(terms)
        if self.kind in _APART:
            return mixed_factors(terms, self.mix)
        rank = self.rank
        if rank is None and self.kind != "exact":
            rank = max(factors.rank for factors, _ in terms)
        if self.clamp is None:
            return mixed_spectrum(terms, self.mix, rank).factors()
        found = exact_svd(mixed_delta(terms, self.mix))
        found = found.cut(rank or max(1, found.numerical_rank))
        us_OR = found.u_OR * found.s_R
        limit = float(torch.quantile(torch.cat([us_OR.flatten(), found.v_RI.flatten()]), self.clamp))
        return found.v_RI.clamp(-limit, limit), us_OR.clamp(-limit, limit)


def _weighted(model: "LoraModel", weighted: Sequence[tuple[str, float]], plan: _Plan) -> Adapter:
    tensors = _common_full_tensors(model, [name for name, _ in weighted])
    configs = [model.peft_config[name] for name, _ in weighted]
    lora_bias = any(config.lora_bias for config in configs)
    ranks: dict[str, int] = {}
    for path, layer in model.lora_layers.items():
        here = [(name, weight) for name, weight in weighted if name in layer.adapters]
        if not here:
            continue
        made, ranks[path] = _on_layer(path, layer, here, plan, lora_bias)
        tensors |= {f"{path}.{key}": tensor for key, tensor in made.items()}
    dropouts = {config.lora_dropout for config in configs}
    config = dataclasses.replace(
        configs[0],
        **joint_targets(configs, list(ranks)),  # type: ignore[arg-type]
        use_rslora=False,
        lora_bias=lora_bias,
        lora_dropout=dropouts.pop() if len(dropouts) == 1 else 0.0,
        init_lora_weights=True,
    )
    return Adapter(with_scales(config, {path: (rank, rank) for path, rank in ranks.items()}), tensors)


def _on_layer(
    path: str, layer: LoraLayer, here: Sequence[tuple[str, float]], plan: _Plan, lora_bias: bool
) -> tuple[dict[str, Tensor], int]:
    """Return the combination's tensors on one layer, by their names in PEFT's files, and its rank."""
    terms, biases = [], []
    for name, weight in here:
        a, b = (factor.detach().flatten(1) for factor in layer.factors(name))
        terms.append((Factors(a, b, float(layer.scaling[name])), weight))
        biases.append(layer.tensors(name).get("lora_B.bias"))
    ranks = {name: factors.rank for (name, _), (factors, _) in zip(here, terms, strict=True)}
    if plan.kind in _APART and len(set(ranks.values())) > 1:
        told = ", ".join(f"{name!r} has {rank}" for name, rank in ranks.items())
        raise AdapterError(
            f"combination_type {plan.kind!r} needs equal ranks; at {path!r} {told}. Use 'svd' or 'cat'."
        )
    if plan.kind not in _APART and any(f.b_OR.shape[1] != f.rank for f, _ in terms):
        raise AdapterError(
            f"combination_type {plan.kind!r}: {path!r} is a grouped convolution, whose A and B have no "
            "product. Exclude it, or use 'linear'."
        )
    if lora_bias and layer.lookup:
        raise AdapterError(f"lora_bias: {path!r} is an embedding, which cannot have the bias of the others.")
    a_RI, b_OR = plan.factors(terms)
    dtype = terms[0][0].a_RI.dtype
    made = [a_RI.to(dtype), b_OR.to(dtype)]
    keys = list(layer.tensors(here[0][0]))[:2]
    shapes = layer.factor_shapes(a_RI.shape[0])
    found = {k: t.reshape(shape) for k, t, shape in zip(keys, made, shapes, strict=True)}
    if lora_bias:
        own = [bias for bias in biases if bias is not None]
        zero = torch.zeros(b_OR.shape[0], dtype=dtype, device=b_OR.device)
        found["lora_B.bias"] = mixed_bias(terms, biases, plan.mix) if own else zero
    return found, a_RI.shape[0]


def _check_config(name: str, config: LoraConfig) -> None:
    """Raise AdapterError for an adapter that is more than products B A over the base as it was."""
    if config.variant != "plain":
        raise AdapterError(
            f"adapter {name!r} is a {config.variant} adapter: what it adds is no product B A and cannot be "
            "summed. Merge it into the base, or extract a plain adapter from the merged model."
        )
    if config.target_parameters:
        raise AdapterError(f"adapter {name!r} has target_parameters, whose factors cannot be combined here.")
    if changes_base(config.init_lora_weights):
        raise AdapterError(
            f"adapter {name!r} was started by {config.init_lora_weights!r}, which changed the base's weights "
            "for it; beside others it means something else. Save it as a plain adapter first."
        )
    if config.bias != "none":
        raise AdapterError(
            f"adapter {name!r} trains the base's biases (bias={config.bias!r}), of which there is one set; "
            "they cannot be combined."
        )


def _common_full_tensors(model: "LoraModel", names: Sequence[str]) -> dict[str, Tensor]:
    """Return what the adapters have in full, which all must have alike: there is no sum of that."""
    found = {}
    for name in names:
        layers = {p: layer for p, layer in model.lora_layers.items() if name in layer.adapters}
        own = {f"{path}.{key}" for path, layer in layers.items() for key in layer.tensors(name)}
        tensors = model.adapter(name).tensors
        found[name] = {key: tensor.detach() for key, tensor in tensors.items() if key not in own}
    common = found[names[0]]
    for name in names[1:]:
        for key in (*common, *found[name]):
            one, two = common.get(key), found[name].get(key)
            if one is None or two is None or not torch.equal(one, two):
                raise AdapterError(
                    f"{key} is trained in full and differs between {names[0]!r} and "
                    f"{name!r}; only factors can be combined."
                )
    return dict(common)
