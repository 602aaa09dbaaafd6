"""The settings of a training run: one flat, typed schema, the source of flags, TOML and docs.

Needs no torch, so that the command line starts at once.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import ValidationError

from loralab.errors import ConfigError, did_you_mean
from loralab.training.effort import ADAPTERS_OWN, filled_in
from loralab.training.settings import Section
from loralab.training.settings.adapter import AdapterSettings
from loralab.training.settings.data import DataSettings
from loralab.training.settings.hardware import HardwareSettings
from loralab.training.settings.optimization import OptimizationSettings
from loralab.training.settings.watching import WatchingSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["RunConfig", "explain", "layered", "read_toml"]

_NAME = re.compile(r"[\w][\w.-]{,99}")


class _Naming(Section):
    """What the run is, and where."""

    name: str = ""
    """Name of the run, and of its adapter. Made from the data's name when left out."""
    model: str = ""
    """Base model: a folder, a hub id, or "demo"."""
    runs: str = "runs"
    """Folder that holds the runs."""
    effort: Literal["quick", "balanced", "thorough"] = "balanced"
    """What is left out is chosen for a short run, a usual one, or the best result found."""


class RunConfig(
    WatchingSettings, HardwareSettings, OptimizationSettings, AdapterSettings, DataSettings, _Naming
):
    """Everything that a run needs. One name a setting: the flag's, the TOML key's and the field's."""

    @property
    def targets(self) -> str | list[str]:
        """`target_modules` as `LoraConfig` takes it: a preset, a list of names, or a regex.

        Until the base is known, what a base of usual vocabulary would get.
        """
        wanted = "all-linear" if self.target_modules is None else self.target_modules
        words = [word.strip() for word in wanted.split(",") if word.strip()]
        if wanted in ("all-linear", "attention", "feed-forward"):
            return wanted
        if all(re.fullmatch(r"[\w.-]+", word) for word in words) and ".*" not in wanted:
            return words
        return wanted

    def to_toml(self) -> str:
        """Return the settings as TOML; what is unset is left out."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def read_toml(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file, not yet checked.

    Raises:
        ConfigError: the file is missing or is no TOML.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; expected a TOML file with settings.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None
    return values


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of which each layer goes before those to its left, not yet checked.

    How long a run is, `epochs` or `max_steps` say; the one that a layer names takes the other one's place.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        if layer.get("max_steps") is not None:
            merged.pop("epochs", None)
        elif "epochs" in layer:
            merged.pop("max_steps", None)
        merged |= layer
    return merged


def check(values: dict[str, Any], where: str = "") -> RunConfig:
    """Return the settings, checked; all faults are reported at once.

    Raises:
        ConfigError: an unknown key, a value of the wrong kind or out of range, two that conflict.
    """
    try:
        config = RunConfig(**filled_in(values))
        fault = "; ".join(_conflicts(config))
    except ValidationError as error:
        fault = explain(error)
    if fault:
        raise ConfigError(f"{where}: {fault}" if where else fault)
    return config


def _conflicts(config: RunConfig) -> list[str]:
    return [
        fault
        for faults in (_of_the_run, _of_the_schedule, _of_the_adapter, _without_effect)
        for fault in faults(config)
    ]


def _of_the_run(config: RunConfig) -> Iterator[str]:
    if config.name and (not _NAME.fullmatch(config.name) or ".." in config.name):
        yield f"name is {config.name!r}: expected up to 100 letters, digits, '-', '_', '.', and no path in it"
    if config.micro_batch_size is not None and config.batch_size % config.micro_batch_size:
        yield f"micro_batch_size {config.micro_batch_size} does not divide batch_size {config.batch_size}"
    if config.cutoff_length is not None and config.overlap_length >= config.cutoff_length:
        yield f"overlap_length {config.overlap_length} must be less than cutoff_length {config.cutoff_length}"
    if config.eval_data and config.eval_split:
        yield "eval_data and eval_split are two ways to say what to validate on; choose one"


def _of_the_schedule(config: RunConfig) -> Iterator[str]:
    scheduler = config.lr_scheduler
    if config.max_steps is not None and config.epochs != RunConfig.model_fields["epochs"].default:
        yield "epochs has no effect beside max_steps, which says how long the run is; choose one"
    if config.warmup_steps is not None and config.warmup_ratio is not None:
        yield "warmup_steps and warmup_ratio say the same; choose one"
    if scheduler == "constant" and (config.warmup_steps or config.warmup_ratio):
        yield "lr_scheduler constant has no warm-up; take constant_with_warmup"
    if config.optimizer == "schedule-free" and scheduler not in ("constant", "constant_with_warmup"):
        yield f"optimizer schedule-free wants lr_scheduler constant or constant_with_warmup, not {scheduler}"
    if config.lr_cycles != 1 and scheduler != "cosine_with_restarts":
        yield "lr_cycles has an effect with lr_scheduler cosine_with_restarts only"
    if config.lr_power != 1 and scheduler != "polynomial":
        yield "lr_power has an effect with lr_scheduler polynomial only"


def _of_the_adapter(config: RunConfig) -> Iterator[str]:
    if config.full:
        for name in (*ADAPTERS_OWN, "lora_dropout", "lora_plus_ratio", "from_adapter", "quantize"):
            if getattr(config, name) != RunConfig.model_fields[name].default:
                yield f"{name} has no effect with full, which trains no adapter; leave it out"


def _without_effect(config: RunConfig) -> Iterator[str]:
    if config.data and not (config.eval_data or config.eval_split):
        for name in ("eval_steps", "early_stopping"):
            if getattr(config, name) is not None:
                yield f"{name} has no effect without eval_data or eval_split; add one, or leave it out"
    if config.sample_steps is not None and config.sample_prompts is None:
        yield "sample_steps has no effect without sample_prompts"


def explain(error: ValidationError) -> str:
    """Return pydantic's faults as one line in the user's words."""
    return "; ".join(_explain_one(dict(fault)) for fault in error.errors())


def _explain_one(fault: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown setting {name!r}.{did_you_mean(name, RunConfig.model_fields)}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not name:
        return message
    return f"{name} is {fault['input']!r}: {message[0].lower()}{message[1:]}"
