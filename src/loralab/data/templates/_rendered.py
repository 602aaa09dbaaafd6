"""Chat templates in Jinja, the tokenizer's own or a user's, rendered by transformers in its sandbox."""

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from loralab.data.templates._template import Segment, Template, Tools, last_answer
from loralab.data.types import Chat, Message
from loralab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Rendered"]

_FAULTS = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
)
"""What a template may raise: its own refusals, and what its expressions do in Python."""


class _Rewritten(DataError):
    """The template writes earlier text differently once more turns follow."""


class Rendered(Template):
    """A chat template in Jinja. Answers are found by writing the turns before them."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", text: str | None = None, name: str = "tokenizer"
    ) -> None:
        """`text` is the template, None for the tokenizer's own."""
        self.name = name
        self._tokenizer = tokenizer
        self.jinja = text or ""
        self._called = "the tokenizer's chat template" if text is None else name

    @property
    def source(self) -> str:
        """The text of the template; of a tokenizer that has several, all of them."""
        return self.jinja or str(self._tokenizer.chat_template)

    def check_syntax(self) -> None:
        """Hold the template to be Jinja.

        Raises:
            ConfigError: it is not.
        """
        try:
            # What else it refuses about this conversation is for the rows to meet.
            with contextlib.suppress(DataError):
                self._write([Message("user", "a")], ask=True)
        except TemplateSyntaxError as error:
            raise ConfigError(f"{self._called}:{error.lineno}: no valid Jinja: {error.message}.") from None

    def segments(self, messages: Sequence[Message], *, ask: bool, tools: Tools = ()) -> list[Segment]:
        try:
            return self._pieces(messages, ask=ask, tools=tools)
        except _Rewritten:
            if not ask:
                raise
            # For the answer that is asked for, what its author's template writes is right. Training on the
            # last answers sees the same; training on all of them refuses the conversation.
            return [Segment(self._write(messages, ask=True, tools=tools), False)]

    def render(self, chat: Chat, *, last_only: bool = False) -> list[Segment]:
        if not last_only:
            return super().render(chat)
        last = last_answer(chat)
        before = chat.messages[:last]
        prompt = self._write(before, ask=True, tools=chat.tools)
        pieces = self.segments(before, ask=True, tools=chat.tools)
        return pieces + self._answer(chat.messages[: last + 1], prompt, chat.tools)[1]

    def _pieces(self, messages: Sequence[Message], *, ask: bool, tools: Tools) -> list[Segment]:
        pieces: list[Segment] = []
        done = ""
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self._write(messages[:index], ask=True, tools=tools)
            pieces.append(Segment(self._rest(prompt, done, index), False))
            done, answer = self._answer(messages[: index + 1], prompt, tools)
            pieces.extend(answer)
        if ask or not messages or messages[-1].role != "assistant":
            text = self._write(messages, ask=ask, tools=tools)
            pieces.append(Segment(self._rest(text, done, len(messages)), False))
        return pieces

    def _answer(self, messages: Sequence[Message], prompt: str, tools: Tools) -> tuple[str, list[Segment]]:
        """Return the text up to the answer that ends `messages`, and the segments of that answer."""
        written = self._write(messages, ask=False, tools=tools)
        answer = self._rest(written, prompt, len(messages) - 1)
        for call in messages[-1].tool_calls:
            self._check_shown(call.name, answer, "a call of", "choose a template that does")
        return written, _split_answer(answer, messages[-1])

    def _write(self, messages: Sequence[Message], *, ask: bool, tools: Tools = ()) -> str:
        if not messages:
            raise DataError(
                f"{self._called} needs a turn before the assistant's first; "
                "begin with a user's turn, or choose another template, for example chatml."
            )
        given: dict[str, Any] = {"tools": list(tools)} if tools else {}
        try:
            text = self._tokenizer.apply_chat_template(
                [_as_object(message) for message in messages],
                chat_template=self.jinja or None,
                tokenize=False,
                add_generation_prompt=ask,
                **given,
            )
        except TemplateSyntaxError:
            raise
        except _FAULTS as error:
            reason = " ".join(str(error).split())
            place = f"{self._called}{_line_of(error.__traceback__)}"
            raise DataError(f"{place} refuses this conversation: {reason}") from error
        for tool in tools:
            function = tool["function"]
            name = str(function["name"]) if isinstance(function, dict) else ""
            self._check_shown(
                name, str(text), "the tool", "leave out 'tools', or choose a template that does"
            )
        return str(text)

    def _check_shown(self, name: str, text: str, what: str, advice: str) -> None:
        if name not in text:
            raise DataError(f"{self._called} does not write {what} {name!r}; {advice}.")

    def _rest(self, longer: str, shorter: str, turn: int) -> str:
        if not longer.startswith(shorter):
            raise _Rewritten(
                f"{self._called} writes the text before turn {turn + 1} differently once more "
                "turns follow, so what the model is asked and what it answers cannot be told apart; "
                "train on the last answer alone, or choose another template, for example chatml."
            )
        return longer[len(shorter) :]


def _as_object(message: Message) -> dict[str, Any]:
    """Return the turn as chat templates expect it; what it does not have has no key."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            | ({"id": call.id} if call.id else {})
            for call in message.tool_calls
        ]
    optional = {"tool_call_id": message.tool_call_id, "name": message.name}
    return turn | {key: value for key, value in optional.items() if value}


def _line_of(traceback: TracebackType | None) -> str:
    """Return ":7" if the error came from line 7 of the template, "" if that is not known."""
    line = ""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = f":{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return line


def _split_answer(answer: str, message: Message) -> list[Segment]:
    """Set the white space between turns apart from the answer, unless it is the only mark that ends it."""
    if message.blank:
        return [Segment(answer, False)]
    marked = answer.rstrip()
    content = message.content.strip()
    if content and marked.endswith(content):
        return [Segment(answer, True)]
    return [Segment(marked, True), Segment(answer[len(marked) :], False)]
