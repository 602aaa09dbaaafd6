"""How data is read: the settings by which rows become examples, and whether each has an effect."""

from dataclasses import dataclass, fields
from typing import Literal

from loralab.data.chunk import check_lengths
from loralab.errors import ConfigError

__all__ = ["Reading", "Side"]

Side = Literal["all", "train", "eval"]
"""Which rows are taken where `eval_split` divides them."""

_OF_DOCUMENTS = (
    "overlap_length",
    "hard_cut_string",
    "newline_favor_length",
    "min_chars",
    "add_bos",
    "add_eos",
)
_OF_CONVERSATIONS = ("template", "train_on", "too_long")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a user can say about the way from rows to examples; `RunConfig` explains each setting."""

    cutoff_length: int = 512
    overlap_length: int = 0
    format: str = "auto"
    template: str = "auto"
    columns: str = ""
    too_long: Literal["drop", "cut"] = "drop"
    train_on: Literal["answers", "last-answer"] = "answers"
    hard_cut_string: str = ""
    newline_favor_length: int | None = None
    min_chars: int = 0
    add_bos: bool = True
    add_eos: bool = True
    eval_split: float | None = None

    def check(self) -> None:
        """Check what can be checked without data.

        Raises:
            ConfigError: a setting is out of range or cannot be read.
        """
        check_lengths(self.cutoff_length, self.overlap_length, self.newline_favor_length)
        if self.eval_split is not None and not 0 < self.eval_split <= 0.5:
            raise ConfigError(f"eval_split is {self.eval_split}; expected a share above 0, up to 0.5.")
        if self.min_chars < 0:
            raise ConfigError(f"min_chars is {self.min_chars}; expected 0 or more.")
        self.renames()

    def renames(self) -> dict[str, str]:
        """Return `columns` as a dictionary: the name in the data -> the name that a format asks for.

        Raises:
            ConfigError: it is not of the form "prompt=question, completion=answer".
        """
        found: dict[str, str] = {}
        for pair in filter(None, (part.strip() for part in self.columns.split(","))):
            new, equals, old = (word.strip() for word in pair.partition("="))
            if not (new and equals and old):
                raise ConfigError(
                    f"columns: {pair!r} is no NAME=COLUMN; expected as "
                    '"prompt=question, completion=answer": the name that the format needs, then the data\'s.'
                )
            if old in found or new in found.values():
                raise ConfigError(f"columns: {old if old in found else new!r} is named twice.")
            found[old] = new
        return found

    def refuse_useless(self, format: str, *, documents: bool) -> None:
        """Refuse a setting that the user named and that does nothing to data of this format.

        Raises:
            ConfigError: there is one.
        """
        usual = {entry.name: entry.default for entry in fields(self)}
        for name in _OF_CONVERSATIONS if documents else _OF_DOCUMENTS:
            value = getattr(self, name)
            if value != usual[name] and (name, value) != ("template", "none"):
                raise ConfigError(f"{name} {value!r} has no effect: {_why_useless(name, format)}")


def _why_useless(name: str, format: str) -> str:
    if name == "template":
        return (
            f"format '{format}' is documents, which are trained as they stand; leave the template at 'auto'."
        )
    if name == "overlap_length":
        return f"only documents are cut into blocks, and format '{format}' is conversations; set it to 0."
    if name == "too_long":
        return f"format '{format}' is documents, which are cut into blocks; leave it out."
    if name == "train_on":
        return f"format '{format}' is documents, which are trained whole; leave it out."
    return f"it is for raw text, and format '{format}' is conversations; leave it out."
