"""What `loralab eval` measures, and how. Needs no torch, so that the command line starts at once."""

from typing import Literal

from pydantic import Field

from loralab.data.reading import Reading
from loralab.errors import ConfigError
from loralab.training.settings import Section

__all__ = ["EvalSettings"]

_OF_DATA = (
    *("format", "columns", "template", "train_on", "cutoff_length", "max_length", "stride"),
    *("hard_cut_string", "add_bos", "add_eos", "metrics"),
)


class EvalSettings(Section):
    """Data or tasks, how they are read, and what is computed of them."""

    model: str = ""
    """Base model: a folder, a hub id, or "demo". A model trained with --full is one: runs/NAME/model."""
    data: str = ""
    """Data to measure on, in the formats that `loralab train` takes."""
    tasks: str = ""
    """Tasks of lm-eval-harness in place of data, with commas between: names, or the .yaml files of your
    own."""
    format: str = "auto"
    """Format of the data: auto (from the columns), text, completion, alpaca, messages, sharegpt, preference,
    question_answer, or a .json file of text-generation-webui's formats."""
    columns: str = ""
    """Names for columns, where the data has others: "prompt=question, completion=answer"."""
    template: str = "auto"
    """Chat template: auto (each adapter's own, else the tokenizer's), a name as for `loralab train`, or a
    .jinja file."""
    train_on: Literal["answers", "last-answer"] = "answers"
    """Conversations: measure every answer of the assistant, or the last one alone."""
    cutoff_length: int | None = Field(default=None, ge=2)
    """Rows: the longest one in tokens. Left out: 512, or the model's positions if they are fewer."""
    max_length: int | None = Field(default=None, ge=2)
    """Raw text: tokens of a window. Left out: 512, or the model's positions if they are fewer."""
    stride: int | None = Field(default=None, ge=1)
    """Raw text: tokens that a window goes on, and scores. Smaller gives more context and takes longer. Left
    out: half of max_length."""
    hard_cut_string: str = ""
    """Raw text: what stands between passages that have nothing to do with each other, as \\n\\n\\n. No window
    reaches over it."""
    add_bos: bool = True
    """Raw text: begin a passage with what the tokenizer begins texts with."""
    add_eos: bool = True
    """Raw text: end a passage with the end-of-sequence token, and measure that too."""
    limit: int | None = Field(default=None, ge=1)
    """Measure on the first rows only, so many of them; of each task the first questions."""
    metrics: str = ""
    """Have every prompt answered, and score the answers: exact, rouge, bleu, chrf, nist, with commas
    between."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest answer in tokens. Left out: 200."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Rows, windows or prompts computed at once."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the base; auto is bfloat16 where the hardware has it."""
    allow_pickle: bool = False
    """Load a base or adapter that is a pickle file. A pickle can run any program."""

    @property
    def metric_names(self) -> list[str]:
        """`metrics` as a sorted list without doubles."""
        return sorted({word.strip() for word in self.metrics.split(",") if word.strip()})

    @property
    def task_names(self) -> list[str]:
        """`tasks` as a list without doubles."""
        return list(dict.fromkeys(word.strip() for word in self.tasks.split(",") if word.strip()))

    @property
    def answer_tokens(self) -> int:
        """The longest answer in tokens."""
        return self.max_new_tokens or 200

    def named(self, name: str) -> bool:
        """Return whether a setting is another than the usual one."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def reading(self, cutoff_length: int, template: str) -> Reading:
        """Return what the data is read with."""
        return Reading(
            cutoff_length=cutoff_length,
            format=self.format,
            template=template,
            columns=self.columns,
            train_on=self.train_on,
            hard_cut_string=self.hard_cut_string,
            add_bos=self.add_bos,
            add_eos=self.add_eos,
        )

    def check(self) -> None:
        """Check the settings against each other, as far as that needs no data.

        Raises:
            ConfigError: something is missing, or would have no effect.
        """
        if not self.model:
            raise ConfigError("no model was given; add --model with a folder, a hub id or 'demo'.")
        if self.data and self.task_names:
            raise ConfigError("both data and tasks are given, which are measured apart; leave one out.")
        if not self.data and not self.task_names:
            raise ConfigError("no data was given; add --data, or --tasks of lm-eval-harness.")
        for name in _OF_DATA if self.task_names else ():
            if self.named(name):
                raise ConfigError(f"{name} has no effect on --tasks, which bring their own; leave it out.")
        if self.max_new_tokens is not None and not self.metric_names:
            raise ConfigError("max_new_tokens has no effect without --metrics: nothing is generated.")
        if self.stride is not None and self.max_length is not None and self.stride > self.max_length:
            raise ConfigError(
                f"stride {self.stride} is longer than max_length {self.max_length}: "
                "tokens between the windows would never be scored."
            )
