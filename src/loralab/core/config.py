"""`LoraConfig`: what an adapter is made of, one to one with PEFT's ``adapter_config.json``."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from loralab.core.config_kinds import as_set, unreadable, wrong_kinds
from loralab.core.init_config import (
    CordaConfig,
    EvaConfig,
    LoftQConfig,
    LoraGAConfig,
    fill_sub_configs,
    plain_sub_configs,
)
from loralab.core.peft_config import FORMAT_VERSION, LoraRuntimeConfig, PeftConfig, PeftType, TaskType
from loralab.errors import AdapterError, ConfigError, did_you_mean

__all__ = ["FORMAT_VERSION", "LoraConfig", "TaskType", "pattern_matches"]

_OFF: dict[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "use_bdlora": (None, False),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "kasa_config": (None,),
    "use_qalora": (False,),
    "megatron_config": (None,),
}
"""PEFT fields that loralab does not implement, with the values that leave them off."""

_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}

_OLD = ("merge_weights",)
"""Settings of old files that say how a model was to be kept, not what the adapter computes."""

_EMPTY: tuple[Any, ...] = (None, False, [], {}, "")


@dataclass
class LoraConfig(PeftConfig):
    """The settings of one adapter. Names, defaults and meaning are PEFT's.

    A field that loralab does not implement is accepted with its "off" value and refused by name with any
    other. All faults are reported at once.

    Raises:
        ConfigError: a value is out of range, of the wrong kind, or asks for something not implemented.
    """

    KIND: ClassVar[PeftType | None] = PeftType.LORA

    r: int = 8
    """Rank: each adapted [O, I] weight gets r * (O + I) trainable numbers."""
    target_modules: list[str] | set[str] | str | None = None
    """Module names or suffixes, one regex, "all-linear", "attention" or "feed-forward"."""
    exclude_modules: list[str] | set[str] | str | None = None
    """Modules to leave alone although they are targeted: names or suffixes, or one regex."""
    lora_alpha: float = 8
    """Numerator of the scale: alpha / r, or alpha / sqrt(r) with `use_rslora`."""
    lora_dropout: float = 0.0
    """Probability with which an input number of the adapter is zeroed in training."""
    fan_in_fan_out: bool = False
    """Kept for PEFT's files; which way a weight lies is read off the layer itself."""
    bias: str = "none"
    """Which of the base's biases are trained too: "none", "all" or "lora_only"."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732)."""
    modules_to_save: list[str] | None = None
    """Modules that are copied and trained in full beside the adapter."""
    init_lora_weights: bool | str = True
    """True: A Kaiming-uniform, B zero; "gaussian": A normal with deviation 1/r; False: both random."""
    layers_to_transform: list[int] | int | None = None
    """Adapt these layers only, counted from 0."""
    layers_pattern: list[str] | str | None = None
    """The name of the list that `layers_to_transform` counts in, where the model has several."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Other ranks by module: regex of the end of the name -> r. The first match wins."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Other alphas by module: regex of the end of the name -> lora_alpha. The first match wins."""

    use_dora: bool = False
    """Train the length of every output's weights apart from their direction (arXiv 2402.09353)."""
    lora_bias: bool = False
    """Give B a bias."""

    ensure_weight_tying: bool = False
    """Give an output head that shares the embedding's weight the same adapter, or the same full copy."""
    layer_replication: list[tuple[int, int]] | None = None
    """Stack the base's layers anew: [[0, 4], [2, 5]] is 0 1 2 3 2 3 4, weights shared."""
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    """Tokens whose embeddings are trained in full; by module name where it is not the input embedding."""
    target_parameters: list[str] | None = None
    """Parameters to adapt beside layers, such as stacked experts: endings of ``module.parameter``."""
    loftq_config: LoftQConfig | dict[str, Any] | None = None
    """Settings of ``init_lora_weights="loftq"``; a dictionary becomes a `LoftQConfig`."""
    eva_config: EvaConfig | dict[str, Any] | None = None
    """Settings of ``init_lora_weights="eva"``; a dictionary becomes an `EvaConfig`."""
    corda_config: CordaConfig | dict[str, Any] | None = None
    """Settings of ``init_lora_weights="corda"``; a dictionary becomes a `CordaConfig`."""
    lora_ga_config: LoraGAConfig | dict[str, Any] | None = None
    """Settings of ``init_lora_weights="lora_ga"``; a dictionary becomes a `LoraGAConfig`."""
    alora_invocation_tokens: list[int] | None = None
    arrow_config: dict[str, Any] | None = None
    use_bdlora: Any = None
    velora_config: dict[str, Any] | None = None
    monteclora_config: dict[str, Any] | None = None
    kasa_config: dict[str, Any] | None = None
    use_qalora: bool = False
    qalora_group_size: int = 16
    megatron_config: dict[str, Any] | None = None
    megatron_core: str | None = "megatron.core"
    runtime_config: LoraRuntimeConfig = field(default_factory=LoraRuntimeConfig)
    """Settings that belong to one process; not written to files."""

    def __post_init__(self) -> None:
        if self.peft_type in (None, "LORA"):
            self.peft_type = PeftType.LORA
        if isinstance(self.task_type, TaskType):
            self.task_type = self.task_type.value
        self.target_modules = as_set(self.target_modules)
        self.exclude_modules = as_set(self.exclude_modules)
        self.rank_pattern = self.rank_pattern or {}
        self.alpha_pattern = self.alpha_pattern or {}
        faults = fill_sub_configs(self) + _faults(self)
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def variant(self) -> str:
        """The name of the variant in ``core/variants``."""
        return "dora" if self.use_dora else "plain"

    @property
    def heads(self) -> tuple[str, ...]:
        """Names that models give to the head of this task; it is new, so it is trained in full."""
        return _HEADS.get(self.task_type or "", ())

    def rank_of(self, path: str) -> int:
        """Return the rank for the module at `path`."""
        return int(_first_match(self.rank_pattern, path, self.r))

    def alpha_of(self, path: str) -> float:
        """Return lora_alpha for the module at `path`."""
        return _first_match(self.alpha_pattern, path, self.lora_alpha)

    def scaling_of(self, path: str) -> float:
        """Return the factor of BA for the module at `path`: alpha / r, or alpha / sqrt(r) (rsLoRA)."""
        return self.scaling(self.alpha_of(path), self.rank_of(path))

    def scaling(self, alpha: float, rank: int) -> float:
        """Return alpha / rank, or alpha / sqrt(rank) with `use_rslora`."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, lists in a fixed order, ready for ``adapter_config.json``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["runtime_config"]
        values["peft_type"] = "LORA"
        values |= plain_sub_configs(self)
        return {name: sorted(v) if isinstance(v, set) else v for name, v in values.items()}

    def to_json(self) -> str:
        """Return the text of ``adapter_config.json``; the same config always gives the same bytes."""
        values = self.to_dict() | {"inference_mode": True}
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def _from_values(cls, values: Mapping[str, Any], where: str) -> "LoraConfig":
        return cls.from_dict(values, where)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "adapter config") -> "LoraConfig":
        """Return the config that the JSON object `values` describes.

        Keys that loralab does not know are passed over while their value says "off" (null, false, empty).

        Raises:
            AdapterError: not a LoRA config, or an unknown key that is switched on.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        kind = values.get("peft_type", "LORA")
        if kind != "LORA":
            raise AdapterError(f"{where}: peft_type is {kind!r}; loralab reads 'LORA' adapters only.")
        unknown = {key: value for key, value in values.items() if key not in known}
        for key, value in unknown.items():
            if key in _OLD and "enable_lora" not in unknown:
                continue
            if key == "enable_lora" and value not in _EMPTY:
                raise AdapterError(
                    f"{where}: enable_lora is of PEFT before 0.3, which kept fused layers otherwise; "
                    "'loralab convert' turns such an adapter into one of today."
                )
            if value not in _EMPTY:
                raise AdapterError(
                    f"{where}: unknown setting {key!r} = {value!r}, which may change what the adapter "
                    f"computes.{did_you_mean(key, known)} Remove the line if it does not matter."
                )
        try:
            return cls(**{key: value for key, value in values.items() if key in known})
        except ConfigError as error:
            raise AdapterError(f"{where}: {error}") from None


def pattern_matches(key: str, path: str) -> bool:
    """Return whether a key of `rank_pattern` or `alpha_pattern` stands for the module at `path`."""
    return re.match(rf"(.*\.)?({key})$", path) is not None


def _first_match(pattern: Mapping[str, float], path: str, default: float) -> float:
    for key, value in pattern.items():
        if pattern_matches(key, path):
            return value
    return default


def _faults(config: LoraConfig) -> list[str]:
    faults = unreadable(config)
    if faults:
        return faults
    for name, value in [
        ("r", config.r),
        *((f"rank_pattern[{k!r}]", v) for k, v in config.rank_pattern.items()),
    ]:
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            faults.append(f"{name} is {value!r}; a rank is a whole number of at least 1")
    alphas = [("lora_alpha", config.lora_alpha)]
    alphas += [(f"alpha_pattern[{k!r}]", v) for k, v in config.alpha_pattern.items()]
    for name, alpha in alphas:
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
            faults.append(f"{name} is {alpha!r}; it scales the adapter and must be above 0")
    if not isinstance(config.lora_dropout, int | float) or not 0 <= config.lora_dropout < 1:
        faults.append(f"lora_dropout is {config.lora_dropout!r}; expected a probability from 0 to below 1")
    faults += wrong_kinds(config)
    if not isinstance(config.init_lora_weights, bool | str):
        faults.append(f"init_lora_weights is {config.init_lora_weights!r}; expected True, False or a name")
    for name in ("rank_pattern", "alpha_pattern"):
        for key in getattr(config, name):
            try:
                re.compile(key)
            except re.error as error:
                faults.append(f"{name}: {key!r} is not a regular expression: {error}")
    if config.use_dora and config.lora_bias:
        faults.append("lora_bias goes with plain LoRA only: DoRA scales whole outputs; leave one of them out")
    if config.bias not in ("none", "all", "lora_only"):
        faults.append(f"bias is {config.bias!r}; expected 'none', 'all' or 'lora_only'")
    if config.task_type is not None and config.task_type not in TaskType.__members__:
        faults.append(
            f"task_type is {config.task_type!r}; expected one of {', '.join(TaskType.__members__)}."
            + did_you_mean(str(config.task_type), TaskType.__members__)
        )
    presets = ("all-linear", "attention", "feed-forward")
    regex = isinstance(config.target_modules, str) and config.target_modules not in presets
    if config.layers_to_transform is not None and regex:
        faults.append("layers_to_transform needs target_modules as a list or a preset, not a regex")
    if config.layers_pattern and config.layers_to_transform is None:
        faults.append("layers_pattern needs layers_to_transform")
    if config.peft_type != PeftType.LORA:
        faults.append(f"peft_type is {config.peft_type!r}; a LoraConfig is for 'LORA'")
    if config.runtime_config.ephemeral_gpu_offload:
        faults.append(
            "ephemeral_gpu_offload would have no effect: an initialisation runs where its weight is"
        )
    for name, off in _OFF.items():
        if getattr(config, name) not in off:
            faults.append(f"{name} = {getattr(config, name)!r} is not supported; leave it at {off[0]!r}")
    return faults
