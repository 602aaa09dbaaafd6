"""Settings that belong to one initialisation each. Field names, defaults and meaning are PEFT's."""

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loralab.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from loralab.core.config import LoraConfig
    from loralab.core.svd import LowRank

__all__ = [
    "CordaConfig",
    "EvaConfig",
    "LoftQConfig",
    "LoraGAConfig",
    "check_sub_configs",
    "fill_sub_configs",
    "plain_sub_configs",
]

DIRECTIONS = ("ArBr", "A2rBr", "ArB2r", "random")
SCALES = ("stable", "weight_svd", "gd_scale", "unit")


@dataclass
class LoftQConfig:
    """``init_lora_weights="loftq"``: what the base weight is quantized to (arXiv 2310.08659)."""

    loftq_bits: int = 4
    """4: NormalFloat in blocks of 64; 2: the same with 4 levels; 8: whole numbers, one scale a row."""
    loftq_iter: int = 1
    """How often quantization and the factors take turns."""

    def __post_init__(self) -> None:
        faults = []
        if self.loftq_bits not in (2, 4, 8):
            faults.append(f"loftq_bits is {self.loftq_bits!r}; expected 2, 4 or 8")
        if not _whole(self.loftq_iter) or self.loftq_iter < 1:
            faults.append(f"loftq_iter is {self.loftq_iter!r}; expected a whole number of at least 1")
        _raise(faults)


@dataclass
class EvaConfig:
    """``init_lora_weights="eva"``: how `initialize_lora_eva_weights` finds A (arXiv 2410.07170)."""

    rho: float = 2.0
    """A layer's rank may grow up to rho times what it was; 1 keeps all ranks."""
    tau: float = 0.99
    """A direction is settled when a further batch turns it by no more than this cosine."""
    use_label_mask: bool = True
    """Leave out positions whose label is `label_mask_value`."""
    label_mask_value: int = -100
    whiten: bool = False
    """Divide each direction by the root of its singular value."""
    adjust_scaling_factors: bool = True
    """Give a layer whose rank changes another alpha, so that the scale of its adapter stays."""

    def __post_init__(self) -> None:
        faults = []
        if not _number(self.rho) or not 1 <= self.rho < math.inf:
            faults.append(f"rho is {self.rho!r}; expected a number of at least 1")
        if not _number(self.tau) or not 0 <= self.tau <= 1:
            faults.append(f"tau is {self.tau!r}; it is a cosine, from 0 to 1")
        if not _whole(self.label_mask_value):
            faults.append(f"label_mask_value is {self.label_mask_value!r}; expected a whole number")
        _raise(faults)


@dataclass
class CordaConfig:
    """``init_lora_weights="corda"``: how `preprocess_corda` splits the weights (arXiv 2406.05223)."""

    cache_file: str | None = None
    """Where the factors are kept; if the file is there, it is read and no data is needed."""
    covariance_file: str | None = None
    """Where the covariances are kept, for adapters of other ranks; read if it is there."""
    corda_method: str | None = "ipm"
    """"ipm" trains the directions that the data uses most, "kpm" those that it uses least."""
    verbose: bool = False
    """Log a line for each layer."""
    use_float16_for_covariance: bool = False
    """Keep the covariances in half the memory, less exact."""
    prune_temporary_fields: bool = True
    """Forget the covariances once the factors are made; else they stay in `covariances`."""
    statistics: "dict[str, tuple[Tensor, Tensor]] | None" = field(
        default=None, init=False, repr=False, compare=False
    )
    """By module path: (a_RI, b_OR), whose product leaves the weight. In memory only."""
    covariances: "dict[str, Tensor] | None" = field(default=None, init=False, repr=False, compare=False)
    """By module path: the covariance of the input, [I, I]. In memory only."""

    def __post_init__(self) -> None:
        faults = []
        for name in ("cache_file", "covariance_file"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                setattr(self, name, os.fspath(value))
            elif not (value is None or (isinstance(value, str) and value)):
                faults.append(f"{name} is {value!r}; expected a path")
        faults += _not_one_of("corda_method", self.corda_method, ("ipm", "kpm", None))
        _raise(faults)


@dataclass
class LoraGAConfig:
    """``init_lora_weights="lora_ga"``: how the gradients become factors (arXiv 2407.05000)."""

    direction: str = "ArB2r"
    """Which of the 2 r leading directions of the gradient go to A and which to B."""
    scale: str = "stable"
    """What B (and A) are multiplied by: see `loralab.core.inits.lora_ga`."""
    stable_gamma: float = 16
    """The gamma of ``scale="stable"``: the larger, the smaller is B."""
    statistics: "dict[str, LowRank] | None" = field(default=None, init=False, repr=False, compare=False)
    """By module path: the 2 r leading singular triplets of the weight's gradient. In memory only."""

    def __post_init__(self) -> None:
        faults = _not_one_of("direction", self.direction, DIRECTIONS)
        faults += _not_one_of("scale", self.scale, SCALES)
        if not _number(self.stable_gamma) or not 0 < self.stable_gamma < math.inf:
            faults.append(f"stable_gamma is {self.stable_gamma!r}; expected a number above 0")
        _raise(faults)


_KINDS: dict[str, type[Any]] = {
    "loftq": LoftQConfig,
    "eva": EvaConfig,
    "corda": CordaConfig,
    "lora_ga": LoraGAConfig,
}
"""By initialisation: its settings, which stand in the `LoraConfig` under that name and ``_config``."""


def fill_sub_configs(config: "LoraConfig") -> list[str]:
    """Make the dictionaries in `config` settings of their kind and return what is wrong with them.

    The initialisation that is asked for gets its defaults if it is given nothing.
    """
    faults = []
    for init, kind in _KINDS.items():
        name = f"{init}_config"
        try:
            settings = _sub_config(getattr(config, name), kind)
        except ConfigError as error:
            faults.append(f"{name}: {error}")
            continue
        wanted = str(config.init_lora_weights).lower() == init
        setattr(config, name, kind() if settings is None and wanted else settings)
    return faults


def plain_sub_configs(config: "LoraConfig") -> dict[str, Any]:
    """Return the settings as PEFT writes them; what is in memory only is not among them."""
    found: dict[str, Any] = {}
    for init in _KINDS:
        settings = getattr(config, f"{init}_config")
        fields = dataclasses.fields(settings) if settings else ()
        values = {f.name: getattr(settings, f.name) for f in fields if f.init}
        found[f"{init}_config"] = values or ({} if init == "loftq" else None)
    return found


def check_sub_configs(config: "LoraConfig") -> None:
    """Raise ConfigError if settings are given for another initialisation than the one asked for.

    Only for an adapter that is made new: files keep the settings of how an adapter was begun.
    """
    for init in _KINDS:
        settings = getattr(config, f"{init}_config")
        if settings is not None and str(config.init_lora_weights).lower() != init:
            raise ConfigError(
                f"{init}_config has no effect with init_lora_weights={config.init_lora_weights!r}; set "
                f"init_lora_weights={init!r}, or leave {init}_config out."
            )


def _sub_config(value: Any, kind: type[Any]) -> Any:
    """Return `value`, a `kind`, a dictionary of its fields, or nothing (None, {}), as a `kind` or None."""
    if isinstance(value, kind):
        return value
    if value is None or value == {}:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"expected a {kind.__name__} or a dictionary of its fields, not {value!r}")
    known = [f.name for f in dataclasses.fields(kind) if f.init]
    for key in value:
        if key not in known:
            raise ConfigError(
                f"unknown setting {key!r}; known are {', '.join(known)}.{did_you_mean(str(key), known)}"
            )
    return kind(**value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return _whole(value) or isinstance(value, float)


def _not_one_of(name: str, value: object, known: tuple[str | None, ...]) -> list[str]:
    if value in known:
        return []
    words = [word for word in known if word is not None]
    return [f"{name} is {value!r}; expected {', '.join(map(repr, words))}.{did_you_mean(str(value), words)}"]


def _raise(faults: list[str]) -> None:
    if faults:
        raise ConfigError("; ".join(faults))
