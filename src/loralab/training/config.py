"""The settings of a training run: one flat, typed schema, the source of flags, TOML and docs.

Needs no torch, so that the command line starts at once.
"""

import re
import sys
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loralab.errors import ConfigError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["RunConfig", "explain", "read_toml"]

_NAME = re.compile(r"[\w][\w.-]{,99}")


class RunConfig(BaseModel):
    """Everything that a run needs. One name a setting: the flag's, the TOML key's and the field's."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = ""
    """Name of the run, and of its adapter. Made from the data's name when left out."""
    model: str = ""
    """Base model: a folder, a hub id, or "demo"."""
    data: str = ""
    """Training data: .txt, .json or .jsonl."""
    eval_data: str | None = None
    """Validation data, in the same formats."""
    runs: str = "runs"
    """Folder that holds the runs."""
    format: str = "auto"
    """Format of the data: auto (from the columns), text, completion, alpaca, messages, sharegpt."""
    template: str = "auto"
    """Chat template: auto (the tokenizer's own, else the format's), plain, alpaca, chatml, vicuna."""
    cutoff_length: int | None = Field(default=None, ge=2)
    """Longest row in tokens. Left out: 512, or the model's positions if they are fewer."""
    overlap_length: int = Field(default=0, ge=0)
    """Raw text: tokens that a block repeats from the one before, as context that is not trained again."""

    r: int = Field(default=16, ge=1)
    """Rank. Each adapted [out, in] weight gets r * (out + in) trainable numbers."""
    lora_alpha: float = Field(default=32, gt=0, allow_inf_nan=False)
    """Numerator of the adapter's scale, lora_alpha / r."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability with which an input number of the adapter is zeroed in training."""
    target_modules: str = "all-linear"
    """all-linear, attention, feed-forward, module names with commas between, or one regex."""

    learning_rate: float = Field(default=5e-4, gt=0, allow_inf_nan=False)
    """Peak learning rate. LoRA wants about ten times what full fine-tuning wants."""
    lr_scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    """Course of the learning rate after the warm-up: down to 0 in a line or a cosine, or constant."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps over which the learning rate rises from 0. Left out: a twentieth of the run."""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Gradients are scaled down to this norm where they exceed it."""
    epochs: float = Field(default=3.0, gt=0, allow_inf_nan=False)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, in place of epochs."""
    batch_size: int = Field(default=8, ge=1)
    """Examples (rows, or blocks of text) behind one optimizer step."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Examples computed at once; divides batch_size. Less memory, the same gradient. Left out: all."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Evaluate every so many steps. Left out: a tenth of the run."""
    save_steps: int | None = Field(default=None, ge=1)
    """Save a checkpoint every so many steps. Left out: as eval_steps."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints to keep; the best one is kept besides."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the adapter's start, the order of the data and dropout."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the base; auto is bfloat16 where the hardware has it. Adapters are float32."""
    quantize: Literal["nf4", "int8"] | None = None
    """Keep the base's weights in 4 or 8 bits (bitsandbytes): less memory, a little less quality."""
    activation_checkpointing: bool | None = None
    """Compute layers again in the backward pass, not keep what they made: less memory, more time. Left out:
    as few layers as the forecast of memory asks for."""
    compile: bool = False
    """Compile the model's layers, which takes a minute and pays on some hardware in long runs."""
    allow_pickle: bool = False
    """Load a base whose weights are a pickle file. A pickle can run any program."""

    @property
    def targets(self) -> str | list[str]:
        """`target_modules` as `LoraConfig` takes it: a preset, a list of names, or a regex."""
        words = [word.strip() for word in self.target_modules.split(",") if word.strip()]
        if self.target_modules in ("all-linear", "attention", "feed-forward"):
            return self.target_modules
        if all(re.fullmatch(r"[\w.]+", word) for word in words) and ".*" not in self.target_modules:
            return words
        return self.target_modules

    @property
    def micro(self) -> int:
        """Examples computed at once."""
        return self.micro_batch_size or self.batch_size

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


def check(values: dict[str, Any], where: str = "") -> RunConfig:
    """Return the settings, checked; all faults are reported at once.

    Raises:
        ConfigError: an unknown key, a value of the wrong kind or out of range, two that conflict.
    """
    try:
        config = RunConfig(**values)
        fault = "; ".join(_conflicts(config))
    except ValidationError as error:
        fault = explain(error)
    if fault:
        raise ConfigError(f"{where}: {fault}" if where else fault)
    return config


def _conflicts(config: RunConfig) -> list[str]:
    faults = []
    if config.name and (not _NAME.fullmatch(config.name) or ".." in config.name):
        faults.append(
            f"name is {config.name!r}: expected up to 100 letters, digits, '-', '_', '.', and no path in it"
        )
    if config.micro_batch_size is not None and config.batch_size % config.micro_batch_size:
        faults.append(
            f"micro_batch_size {config.micro_batch_size} does not divide batch_size {config.batch_size}"
        )
    if config.eval_steps is not None and config.data and not config.eval_data:
        faults.append("eval_steps has no effect without eval_data; add --eval-data, or leave it out")
    if config.cutoff_length is not None and config.overlap_length >= config.cutoff_length:
        faults.append(
            f"overlap_length {config.overlap_length} must be less than cutoff_length {config.cutoff_length}"
        )
    return faults


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
