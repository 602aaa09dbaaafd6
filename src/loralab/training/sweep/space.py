"""What a sweep varies, read from flags: ``4,8,16``, ``1e-4..1e-3:log``. Needs no torch."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from loralab.errors import ConfigError
from loralab.training.config import RunConfig, check, layered
from loralab.training.settings.adapter import AdapterSettings
from loralab.training.settings.data import DataSettings
from loralab.training.settings.hardware import HardwareSettings
from loralab.training.settings.optimization import OptimizationSettings
from loralab.training.settings.watching import WatchingSettings

__all__ = ["Choices", "Dimension", "Range", "Space", "read_space", "shown", "why_fixed"]

_MOST_CHECKED = 2000
"""Combinations that are checked before the first is trained; of more, the later ones as they come."""
_WITHOUT_END = 20
"""Trials of a sweep that has a range, where their number was not given."""
_WITH_COMMAS = (
    *("target_modules", "modules_to_save", "from_adapter", "data", "eval_data", "columns"),
    *("hard_cut_string", "report_to", "sample_prompts", "general_data", "runs"),
)
"""Settings whose text may have commas of its own."""


@dataclass(frozen=True)
class Choices:
    """A setting that takes one of some values."""

    name: str
    values: tuple[Any, ...]

    @property
    def text(self) -> str:
        """The values as they are typed."""
        return (";" if self.name in _WITH_COMMAS else ",").join(map(shown, self.values))

    def samples(self) -> tuple[Any, ...]:
        """Return the values to check before anything is trained: all."""
        return self.values

    def points(self) -> tuple[Any, ...] | None:
        """Return all values, or None where they cannot be counted."""
        return self.values

    def tidy(self, value: Any) -> Any:
        """Return the value as the run gets it."""
        return value


@dataclass(frozen=True)
class Range:
    """A number between two, both included; `step` apart where there is one."""

    name: str
    low: float
    high: float
    step: float | None
    log: bool

    @property
    def integer(self) -> bool:
        """Whether it is of whole numbers."""
        return isinstance(self.low, int)

    @property
    def text(self) -> str:
        """The range as it is typed."""
        end = ":log" if self.log else f":{self.step:g}" if self.step else ""
        return f"{self.low:g}..{self.high:g}{end}"

    def samples(self) -> tuple[Any, ...]:
        """Return the values to check before anything is trained: both ends, or all where they are few."""
        points = self.points()
        return points if points and len(points) <= 64 else (self.low, self.high)

    def points(self) -> tuple[Any, ...] | None:
        """Return all values, or None where they cannot be counted."""
        step = self.step or (1 if self.integer else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return tuple(self.tidy(self.low + step * number) for number in range(count))

    def tidy(self, value: Any) -> Any:
        """Return the value as the run gets it: four digits are enough for a number between two others."""
        if self.integer:
            return int(value)
        digits = 10 if self.step else 4
        return min(max(float(f"{value:.{digits}g}"), self.low), self.high)


Dimension = Choices | Range


@dataclass(frozen=True)
class Space:
    """The settings that are swept, and those that are the same in all trials."""

    settings: Mapping[str, Any]
    dimensions: Sequence[Dimension]

    @property
    def grid(self) -> int | None:
        """The number of combinations where all settings are lists, else None."""
        if any(isinstance(dimension, Range) for dimension in self.dimensions):
            return None
        return math.prod(len(dimension.samples()) for dimension in self.dimensions)

    @property
    def count(self) -> int | None:
        """The number of combinations, or None where they cannot be counted."""
        points = [dimension.points() for dimension in self.dimensions]
        return None if None in points else math.prod(len(each or ()) for each in points)

    def trials(self, wanted: int | None) -> int:
        """Return how many trials there are to be: as many as are wanted, but no more than combinations."""
        number = wanted or self.grid or _WITHOUT_END
        return number if self.count is None else min(number, self.count)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Return all combinations of values; none where they cannot be counted."""
        points = [dimension.points() or () for dimension in self.dimensions]
        return self._combine(points)

    def tidy(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a combination as a run gets it, in the order of the dimensions."""
        return {d.name: d.tidy(values[d.name]) for d in self.dimensions}

    def config(self, values: Mapping[str, Any]) -> RunConfig:
        """Return the settings of a combination. Raises as `check`."""
        return check({**self.settings, **values})

    def first(self) -> RunConfig:
        """Return the settings of the first combination. Raises as `check`."""
        return self.config({d.name: d.samples()[0] for d in self.dimensions})

    def check(self) -> None:
        """Check every combination of listed values and ends of ranges.

        Raises:
            ConfigError: values are refused or conflict; all faults are told, each with where it is met first.
        """
        faults: dict[str, str] = {}
        samples = [dimension.samples() for dimension in self.dimensions]
        for values in itertools.islice(self._combine(samples), _MOST_CHECKED):
            try:
                self.config(values)
            except ConfigError as error:
                where = ", ".join(f"{name} {shown(value)}" for name, value in values.items())
                faults.setdefault(str(error).rstrip("."), where)
        if faults:
            raise ConfigError("; ".join(f"{fault} (with {where})" for fault, where in faults.items()) + ".")

    def _combine(self, points: Sequence[Sequence[Any]]) -> Iterator[dict[str, Any]]:
        names = [dimension.name for dimension in self.dimensions]
        return (dict(zip(names, values, strict=True)) for values in itertools.product(*points))


def why_fixed(name: str, *, own_eval_data: bool = False) -> str | None:
    """Return why a setting cannot be swept, or None where it can.

    What may be swept is what changes what is learned, and neither what it is learned on top of nor what it is
    judged by. `own_eval_data`: the validation data is a file of its own, whatever the training data is.
    """
    if name in ("model", "full", "dtype", "quantize", "allow_pickle"):
        return "it is of the base, which all trials share"
    if name == "micro_batch_size" or name in HardwareSettings.model_fields:
        return "it changes memory and speed, not what is learned"
    if name == "data" and own_eval_data:
        return None
    if name in DataSettings.model_fields:
        return "it has a say in the validation data, and all trials must be judged by the same"
    if name in WatchingSettings.model_fields:
        return "it is about what is watched and kept, not about what is learned"
    if name in AdapterSettings.model_fields or name in OptimizationSettings.model_fields or name == "effort":
        return None
    return "it says where the trials lie"


def read_space(settings: Mapping[str, Any], flags: Mapping[str, str]) -> Space:
    """Return what is swept: flags with several values; those with one are settings like those of the file.

    Raises:
        ConfigError: a flag cannot be read, is of what cannot be swept, or none has several values; or the
            settings are at odds with each other. All faults are told at once.
    """
    fixed, dimensions, faults = dict(settings), [], []
    own_eval_data = bool(flags.get("eval_data") or settings.get("eval_data"))
    for name, text in flags.items():
        try:
            found = _read(name, text)
        except ConfigError as error:
            faults.append(str(error))
            continue
        if not isinstance(found, Choices | Range):
            fixed = layered(fixed, {name: found})
            continue
        reason = why_fixed(name, own_eval_data=own_eval_data)
        if reason:
            faults.append(f"{name} cannot be swept ({text}): {reason}")
        fixed = layered(fixed, {name: found})
        del fixed[name]
        dimensions.append(found)
    if {"epochs", "max_steps"} <= flags.keys():
        faults.append("--epochs and --max-steps both say how long a run is; give one of them")
    if faults:
        raise ConfigError("; ".join(faults) + ".")
    if not dimensions:
        raise ConfigError("nothing is swept; give a setting several values, as --r 4,8,16.")
    space = Space(fixed, dimensions)
    space.check()
    config = space.first()
    if not (config.eval_data or config.eval_split):
        raise ConfigError(
            "a sweep compares trials by their validation loss; add --eval-data FILE, or --eval-split 0.1."
        )
    if config.compile:
        raise ConfigError("compile is for a run alone, as every trial would be compiled anew; leave it out.")
    return space


def _read(name: str, text: str) -> Dimension | Any:
    """Return a value, or what is swept where the text has several. Raises ConfigError."""
    kinds = _kinds(name)
    numeric = kinds & {int, float} and bool not in kinds
    if numeric and ".." in text:
        return _read_range(name, text, int in kinds)
    if str in kinds and name in _WITH_COMMAS:
        words = [text] if name == "hard_cut_string" else text.split(";")
    else:
        words = text.split(",")
    values = tuple(_value(name, word if str in kinds and len(words) == 1 else word.strip()) for word in words)
    twice = [word for word, value in zip(words, values, strict=True) if values.count(value) > 1]
    if twice:
        raise ConfigError(f"{name} is {text!r}: {twice[0].strip()} stands there twice")
    return Choices(name, values) if len(values) > 1 else values[0]


def _read_range(name: str, text: str, integer: bool) -> Range:
    ends, *options = text.split(":")
    low, high = (_value(name, end.strip()) for end in ends.split("..", 1))
    if low is None or high is None or not low < high:
        raise ConfigError(f"{name} is {text!r}: a range goes from a number up to a higher one, as 1..4")
    log = options == ["log"]
    if log and low <= 0:
        raise ConfigError(f"{name} is {text!r}: a logarithmic range begins above 0")
    if log or not options:
        return Range(name, low, high, None, log)
    try:
        step = (int if integer else float)(options[0])
    except ValueError:
        step = 0
    if len(options) > 1 or not (step > 0 and math.isfinite(step)):
        raise ConfigError(f"{name} is {text!r}: what follows a range is :log, or :STEP, a number above 0")
    if low + step > high:
        raise ConfigError(f"{name} is {text!r}: the step is longer than the range")
    whole = Range(name, low, high, step, False)
    return Range(name, low, (whole.points() or (high,))[-1], step, False)


def _value(name: str, word: str) -> Any:
    field = RunConfig.model_fields[name]
    if type(None) in _kinds(name) and word.lower() == "none":
        return None
    annotation: Any = Annotated[field.annotation, field]
    try:
        return TypeAdapter(annotation).validate_python(word)
    except ValidationError as error:
        message = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"{name} is {word!r}: {message[0].lower()}{message[1:]}") from None


def _kinds(name: str) -> set[Any]:
    """Return the types that a setting's value may have; those of a choice of words are "words"."""
    annotation = RunConfig.model_fields[name].annotation
    parts = [annotation] if get_origin(annotation) is Literal else get_args(annotation) or [annotation]
    return {"words" if get_origin(part) is Literal else part for part in parts}


def shown(value: Any) -> str:
    """Return the value of a setting as it is typed."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
