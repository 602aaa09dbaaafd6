"""How a conversation is written as text, and which parts of that text are trained.

A template writes the same text before an answer whether the answer follows (training) or is asked for
(generation); that is what `Template.segments` is held to.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from loralab.data.types import Chat, Message
from loralab.errors import ConfigError, DataError, ModelError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["TEMPLATES", "Segment", "Template", "choose_template"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the text of a conversation. `trained` is for an answer and the mark that ends it."""

    text: str
    trained: bool


class Template(ABC):
    """A way to write conversations."""

    name: str

    @abstractmethod
    def segments(self, messages: Sequence[Message], *, ask: bool) -> list[Segment]:
        """Return the text of `messages`; with `ask`, also what stands before the assistant's next answer.

        The segments before an answer are those of `segments(the messages before it, ask=True)`. A blank
        answer is not trained.

        Raises:
            DataError: the template cannot write this conversation.
        """

    def render(self, chat: Chat) -> list[Segment]:
        """Return the whole conversation, for training."""
        return self.segments(chat.messages, ask=False)

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Return the text that training showed before an answer to `messages`, for a model to go on from."""
        return "".join(segment.text for segment in self.segments(messages, ask=True))


class _Layout(Template):
    """A template of our own: an opening, then turn after turn."""

    answer_header = ""
    """What asks for an answer."""
    answer_lead = ""
    """What begins every answer, and is the model's to say."""
    gap = ""
    """What follows the mark that ends an answer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.end = self.end_mark(tokenizer)

    def end_mark(self, tokenizer: "PreTrainedTokenizerFast") -> str:
        """Return the mark that ends an answer."""
        end = tokenizer.eos_token
        if not isinstance(end, str):
            raise ModelError(
                f"template '{self.name}' ends an answer with the tokenizer's end-of-sequence token, and this "
                "tokenizer has none; set its eos_token."
            )
        return end

    def opening(self, first: Message | None) -> str:
        """Return what stands before the first turn. It may not look at later ones: prompts stay prefixes."""
        return ""

    @abstractmethod
    def turn(self, message: Message) -> str:
        """Return the text of a turn that is not the assistant's."""

    def segments(self, messages: Sequence[Message], *, ask: bool) -> list[Segment]:
        pieces = [Segment(self.opening(messages[0] if messages else None), False)]
        for message in messages:
            if message.role == "assistant":
                answer = self.answer_lead + message.content + self.end
                pieces.append(Segment(self.answer_header, False))
                pieces.append(Segment(answer, bool(message.content.strip())))
                pieces.append(Segment(self.gap, False))
            else:
                pieces.append(Segment(self.turn(message), False))
        if ask:
            pieces.append(Segment(self.answer_header, False))
        return pieces


class _Plain(_Layout):
    """Every turn on a line of its own, nothing else."""

    name = "plain"

    def turn(self, message: Message) -> str:
        return f"{message.content}\n"


class _Alpaca(_Layout):
    """Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca); a system turn replaces its opening."""

    name = "alpaca"
    answer_header = "### Response:\n"
    gap = "\n\n"

    def opening(self, first: Message | None) -> str:
        if first is not None and first.role == "system":
            return ""
        task = "Below is an instruction that describes a task"
        if first is not None and first.input:
            task += ", paired with an input that provides further context"
        return f"{task}. Write a response that appropriately completes the request.\n\n"

    def turn(self, message: Message) -> str:
        if message.role == "system":
            return f"{message.content}\n\n"
        if message.role == "tool":
            return f"### Tool:\n{message.content}\n\n"
        if not message.input:
            return f"### Instruction:\n{message.content}\n\n"
        instruction = message.content.removesuffix(message.input).rstrip("\n")
        return f"### Instruction:\n{instruction}\n\n### Input:\n{message.input}\n\n"


class _ChatML(_Layout):
    """OpenAI's chat markup. A tokenizer without the end mark as a token ends turns with its own."""

    name = "chatml"
    answer_header = "<|im_start|>assistant\n"
    gap = "\n"

    def end_mark(self, tokenizer: "PreTrainedTokenizerFast") -> str:
        return "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else super().end_mark(tokenizer)

    def turn(self, message: Message) -> str:
        return f"<|im_start|>{message.role}\n{message.content}{self.end}\n"


class _Vicuna(_Layout):
    """Vicuna 1.1 (github.com/lm-sys/FastChat); a system turn replaces its opening."""

    name = "vicuna"
    answer_header = "ASSISTANT:"
    answer_lead = " "

    def opening(self, first: Message | None) -> str:
        if first is not None and first.role == "system":
            return ""
        return (
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        )

    def turn(self, message: Message) -> str:
        if message.role == "system":
            return f"{message.content} "
        return f"{message.role.upper()}: {message.content} "


class _TokenizerTemplate(Template):
    """The chat template that came with the tokenizer. Answers are found by writing the turns before them."""

    name = "tokenizer"

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self._tokenizer = tokenizer

    def segments(self, messages: Sequence[Message], *, ask: bool) -> list[Segment]:
        pieces: list[Segment] = []
        done = ""
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self._write(messages[:index], ask=True)
            pieces.append(Segment(_rest(prompt, done, index), False))
            done = self._write(messages[: index + 1], ask=False)
            pieces.extend(_split_answer(_rest(done, prompt, index), message.content))
        if ask or not messages or messages[-1].role != "assistant":
            pieces.append(Segment(_rest(self._write(messages, ask=ask), done, len(messages)), False))
        return pieces

    def _write(self, messages: Sequence[Message], *, ask: bool) -> str:
        if not messages:
            raise DataError(
                "the tokenizer's chat template needs a turn before the assistant's first; "
                "begin with a user's turn, or choose another template, for example chatml."
            )
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
        except TemplateError as error:
            reason = " ".join(str(error).split())
            raise DataError(f"the tokenizer's chat template refuses this conversation: {reason}") from error
        return str(text)


def _rest(longer: str, shorter: str, turn: int) -> str:
    if not longer.startswith(shorter):
        raise DataError(
            f"the tokenizer's chat template writes the text before turn {turn + 1} differently once more "
            "turns follow, so what the model is asked and what it answers cannot be told apart; "
            "choose another template, for example chatml."
        )
    return longer[len(shorter) :]


def _split_answer(answer: str, content: str) -> list[Segment]:
    """Set the white space between turns apart from the answer, unless it is the only mark that ends it."""
    if not content.strip():
        return [Segment(answer, False)]
    marked = answer.rstrip()
    if marked.endswith(content.strip()):
        return [Segment(answer, True)]
    return [Segment(marked, True), Segment(answer[len(marked) :], False)]


_LAYOUTS: dict[str, type[_Layout]] = {layout.name: layout for layout in (_Plain, _Alpaca, _ChatML, _Vicuna)}

TEMPLATES = ("auto", "tokenizer", *_LAYOUTS)
"""The names that `choose_template` knows."""


def choose_template(
    tokenizer: "PreTrainedTokenizerFast", format_template: str, name: str = "auto"
) -> Template:
    """Return the template of that name.

    Args:
        format_template: the name to take for "auto" when the tokenizer has no chat template of its own.
        name: "auto", "tokenizer" (its own chat template), or a layout: plain, alpaca, chatml, vicuna.

    Raises:
        ConfigError: there is no such template, or the tokenizer has none of its own.
        ModelError: the layout needs an end-of-sequence token, and the tokenizer has none.
    """
    if name == "auto":
        name = "tokenizer" if tokenizer.chat_template else format_template
    if name == "tokenizer":
        if not tokenizer.chat_template:
            raise ConfigError(f"this tokenizer has no chat template; choose one of {', '.join(_LAYOUTS)}.")
        return _TokenizerTemplate(tokenizer)
    if name not in _LAYOUTS:
        known = ", ".join(TEMPLATES)
        raise ConfigError(f"unknown template {name!r}; known are {known}.{did_you_mean(name, TEMPLATES)}")
    return _LAYOUTS[name](tokenizer)
