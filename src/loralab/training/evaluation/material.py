"""What is measured on: data as rows, windows and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from loralab.data.dataset import Dataset, load_dataset
from loralab.data.formats import choose_format
from loralab.data.mixture import parse_sources
from loralab.data.naming import Renaming
from loralab.data.templates import choose_template
from loralab.data.types import Example, Text
from loralab.errors import ConfigError
from loralab.models import BaseModel
from loralab.models.positions import choose_cutoff
from loralab.training.evaluation.generate import Ends, Question, find_ends, find_questions
from loralab.training.evaluation.perplexity import slide
from loralab.training.evaluation.settings import EvalSettings

__all__ = ["Material", "is_text", "read_material"]

_WHOLE = 2**31 - 1
"""A cutoff that cuts nothing."""


@dataclass(frozen=True)
class Material:
    """A data set, and what of it is measured on."""

    data: Dataset
    base: BaseModel
    rows: int
    """The rows, or documents, that are measured on."""
    examples: Sequence[Example]
    """The rows, or the windows over the documents."""
    max_length: int | None = None
    """Of documents, the tokens of a window."""
    stride: int | None = None
    """Of documents, the tokens that a window goes on."""

    @property
    def tokens(self) -> int:
        """The tokens that are scored."""
        return sum(example.trained for example in self.examples)

    @cached_property
    def ends(self) -> Ends:
        """What ends an answer."""
        template = choose_template(self.base.tokenizer, "plain", self.data.template)
        return find_ends(template, self.base.model, self.base.tokenizer)

    @cached_property
    def questions(self) -> list[Question]:
        """The prompts, each once."""
        return find_questions(self.examples, self.base.tokenizer, self.ends)


def is_text(settings: EvalSettings) -> bool:
    """Return whether the data is raw text, by its first row. Raises as `read_material`."""
    reading = settings.reading(_WHOLE, settings.template)
    renaming = Renaming(reading.renames())
    for source in parse_sources(settings.data):
        for place, found in source.kind.read(source.path, source.name):
            row = renaming.apply(found, place)
            return isinstance(choose_format(reading.format, row, place).parse(row, place), Text)
    return False


def read_material(settings: EvalSettings, template: str, base: BaseModel, *, text: bool) -> Material:
    """Return the data of `settings`, written in `template`; `text` as `is_text` says it.

    Raises:
        ConfigError: a setting is out of range, or has no effect on this data.
        DataError: the data or a row of it is malformed, or nothing of it can be measured.
    """
    if text:
        return _read_text(settings, base)
    _refuse(settings, ("max_length", "stride"), "the data is rows; only raw text has windows")
    cutoff = choose_cutoff(settings.cutoff_length, base.model.config, base.name)
    data = load_dataset(settings.data, base.tokenizer, settings.reading(cutoff, template))
    rows = data.examples[: settings.limit]
    return Material(data, base, len(rows), rows)


def _read_text(settings: EvalSettings, base: BaseModel) -> Material:
    _refuse(settings, ("cutoff_length",), "raw text is measured in windows; use --max-length")
    _refuse(settings, ("metrics",), "raw text has no prompts to answer")
    length = _window(settings, base)
    stride = settings.stride or max(1, length // 2)
    if stride > length:
        raise ConfigError(
            f"stride is {stride}, and the windows have {length} tokens; use --stride {length} or less."
        )
    data = load_dataset(settings.data, base.tokenizer, settings.reading(_WHOLE, settings.template))
    documents = data.examples[: settings.limit]
    return Material(data, base, len(documents), slide(documents, length, stride), length, stride)


def _window(settings: EvalSettings, base: BaseModel) -> int:
    try:
        return choose_cutoff(settings.max_length, base.model.config, base.name)
    except ConfigError as error:
        # The same bound under its other name.
        said = str(error).replace("cutoff_length", "max_length").replace("cutoff-", "max-")
        raise ConfigError(said) from None


def _refuse(settings: EvalSettings, names: Sequence[str], why: str) -> None:
    for name in names:
        if settings.named(name):
            raise ConfigError(f"{name} has no effect: {why}.")
