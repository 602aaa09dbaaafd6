"""Answers to fixed prompts along the way: the base's before the first step, then the adapter's."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loralab.data.encode import encode_prompt
from loralab.data.fields import kind
from loralab.data.templates import Template
from loralab.data.types import Message
from loralab.errors import ConfigError, DataError
from loralab.models.positions import max_positions
from loralab.models.stops import own_stops
from loralab.training.evaluation.generate import Ends, Question, answer, find_ends
from loralab.training.events import Sampled

__all__ = ["Prompt", "Sampler", "read_prompts"]

_LONGEST = 120
"""Tokens of the longest answer."""
_BATCH = 8
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Prompt:
    """What is asked: a text, or a conversation that wants an answer."""

    asked: str | tuple[Message, ...]
    source: str
    """Where it comes from: "prompts.txt:3"."""

    @property
    def text(self) -> str:
        """The prompt as it is shown; of a conversation all turns."""
        if isinstance(self.asked, str):
            return self.asked
        return "\n".join(f"{message.role}: {message.content}" for message in self.asked)

    def ids(self, template: Template | None, tokenizer: Any) -> list[int]:
        """Return the token ids to answer.

        Raises:
            ConfigError: it is a conversation, and there is no template to write it with.
            DataError: the template cannot write it.
        """
        if template is None and not isinstance(self.asked, str):
            raise ConfigError(
                f"{self.source}: a conversation, but the run is on raw text; expected a text to go on from."
            )
        asked = self.asked
        if template is not None and isinstance(asked, str):
            asked = (Message("user", asked),)
        try:
            return encode_prompt(asked, template, tokenizer)
        except DataError as error:
            raise DataError(f"{self.source}: {error}") from None


class Sampler:
    """Answers the prompts with the model as it is, greedily.

    Nothing that training depends on is touched: no random number is drawn, no gradient changed, and the
    model's mode is what it was.
    """

    def __init__(
        self, prompts: Sequence[Prompt], model: Any, tokenizer: Any, template: Template | None
    ) -> None:
        """`template` writes the prompts as the training data is written; None is for raw text.

        Raises:
            ConfigError: a prompt leaves no room for an answer, or is a conversation and there is no template.
            DataError: the template cannot write a prompt.
        """
        self._prompts, self._model, self._tokenizer = tuple(prompts), model, tokenizer
        self._ends = (
            Ends(_ends_of_text(model, tokenizer))
            if template is None
            else find_ends(template, model, tokenizer)
        )
        self._questions = [
            Question(tuple(prompt.ids(template, tokenizer)), (), prompt.source) for prompt in prompts
        ]
        positions = max_positions(model.config)
        for question in self._questions:
            if positions is not None and len(question.ids) >= positions:
                raise ConfigError(
                    f"{question.source}: the prompt has {len(question.ids)} tokens and the model {positions} "
                    "positions: no room to answer."
                )

    def at(self, step: int) -> list[Sampled]:
        """Return the answers of the model as it is now, as events of that step."""
        was_training = self._model.training
        cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        self._model.eval()
        try:
            with torch.random.fork_rng(devices=list(cuda)):
                answers = self._answers()
        finally:
            self._model.train(was_training)
        return [Sampled(step, prompt.text, text) for prompt, text in zip(self._prompts, answers, strict=True)]

    def _answers(self) -> list[str]:
        asking = answer(self._model, self._tokenizer, self._questions, self._ends, (_LONGEST, _BATCH))
        while True:
            try:
                next(asking)
            except StopIteration as end:
                return list(end.value)


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts in a file: one a line of a text, or a .json list of texts and conversations.

    A conversation is a list of messages with "role" and "content"; the next one is to be the assistant's.

    Raises:
        ConfigError: there is no such file, it holds no prompt, one that is none, or one twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"sample_prompts {path}: cannot be read ({reason}).") from None
    if path.suffix.lower() == ".json":
        prompts = [_parse(value, f"{path}: prompt {n}") for n, value in enumerate(_list_in(text, path), 1)]
    else:
        lines = enumerate(text.splitlines(), 1)
        prompts = [Prompt(line.strip(), f"{path}:{number}") for number, line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"sample_prompts {path}: no prompt in it; expected one a line.")
    first: dict[str, str] = {}
    for prompt in prompts:
        if prompt.text in first:
            raise ConfigError(f"{prompt.source}: the same prompt as {first[prompt.text]}; leave one out.")
        first[prompt.text] = prompt.source
    return prompts


def _list_in(text: str, path: Path) -> list[object]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"sample_prompts {path}: not valid JSON ({error}).") from None
    if not isinstance(values, list):
        raise ConfigError(f"sample_prompts {path}: expected a list of prompts, found {kind(values)}.")
    return values


def _parse(value: object, source: str) -> Prompt:
    if isinstance(value, str) and value.strip():
        return Prompt(value, source)
    if (
        isinstance(value, list)
        and value
        and all(map(_is_message, value))
        and value[-1]["role"] != "assistant"
    ):
        return Prompt(tuple(Message(turn["role"], turn["content"]) for turn in value), source)
    raise ConfigError(
        f'{source}: expected a text, or a list of {{"role": ..., "content": ...}} that ends with a turn of '
        "the user."
    )


def _is_message(turn: object) -> bool:
    return (
        isinstance(turn, dict)
        and set(turn) == {"role", "content"}
        and turn["role"] in _ROLES
        and isinstance(turn["content"], str)
    )


def _ends_of_text(model: Any, tokenizer: Any) -> tuple[int, ...]:
    found = {tokenizer.eos_token_id, *own_stops(model)} - {None}
    return tuple(sorted(found))
