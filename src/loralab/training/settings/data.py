"""What is trained on, and how rows become examples."""

from dataclasses import fields
from typing import Literal

from pydantic import Field

from loralab.data.reading import Reading
from loralab.training.settings import Section

__all__ = ["DataSettings", "ReadingSettings"]


class _Sources(Section):
    """What is read."""

    data: str = ""
    """Training data: .txt, .json, .jsonl, .csv, .parquet, a folder of .txt, a datasets folder or hub id;
    several with " + " between; PATH#500 takes 500 rows, PATH*2 takes each row twice an epoch."""
    eval_data: str | None = None
    """Validation data, in the same formats."""


class ReadingSettings(Section):
    """How it is read: split, format, template, cutting."""

    eval_split: float | None = Field(default=None, gt=0, le=0.5)
    """Share of the training rows to validate on, in place of eval_data. Which rows does not change as
    others are added."""
    format: str = "auto"
    """Format of the data: auto (from the columns), text, completion, alpaca, messages, sharegpt, preference,
    question_answer, or a .json file of text-generation-webui's formats."""
    columns: str = ""
    """Names for columns, where the data has others: "prompt=question, completion=answer"."""
    template: str = "auto"
    """Chat template: auto (the tokenizer's own, else the format's), tokenizer (its own, or an error), bare
    (the texts as they stand), plain (a line each), alpaca, chatml, vicuna, llama-3, mistral, phi, gemma,
    qwen, or a .jinja file."""
    train_on: Literal["answers", "last-answer"] = "answers"
    """Conversations: train on every answer of the assistant, or on the last one alone."""
    cutoff_length: int | None = Field(default=None, ge=2)
    """Longest row in tokens. Left out: 512, or the model's positions if they are fewer."""
    too_long: Literal["drop", "cut"] = "drop"
    """A row of more tokens than cutoff_length is left out, or cut there. Raw text is cut into blocks."""
    overlap_length: int = Field(default=0, ge=0)
    """Raw text: tokens that a block repeats from the one before, as context that is not trained again."""
    hard_cut_string: str = ""
    """Raw text: what stands between passages that have nothing to do with each other, as \\n\\n\\n. No block
    reaches over it."""
    newline_favor_length: int | None = Field(default=None, ge=0)
    """Raw text: a block ends up to this many tokens early, to end with a line. Left out: an eighth of the
    cutoff."""
    min_chars: int = Field(default=0, ge=0)
    """Raw text: passages of fewer characters are left out."""
    add_bos: bool = True
    """Raw text: begin a passage with what the tokenizer begins texts with."""
    add_eos: bool = True
    """Raw text: end a passage with the end-of-sequence token, so that the model learns to stop."""

    def reading(self, cutoff_length: int) -> Reading:
        """Return what the floor below reads data with.

        Args:
            cutoff_length: the longest row, where the settings may leave it open.
        """
        given = {entry.name: getattr(self, entry.name) for entry in fields(Reading)}
        return Reading(**{**given, "cutoff_length": cutoff_length})


class DataSettings(ReadingSettings, _Sources):
    """Sources, format, template, cutting."""
