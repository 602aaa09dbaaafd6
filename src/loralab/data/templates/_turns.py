"""What the named templates have in common: an opening, then turn after turn."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from loralab.data.templates._template import Segment, Template, Tools
from loralab.data.types import Message
from loralab.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["TurnByTurn", "fold_system"]


class TurnByTurn(Template):
    """A template of our own. Where its end mark is no token, the end of sequence takes the mark's place.

    The beginning-of-sequence token is not part of it: the tokenizer sets that before every text.
    """

    answer_header = ""
    """What asks for an answer."""
    answer_lead = ""
    """What begins every answer, and is the model's to say."""
    gap = ""
    """What follows the mark that ends an answer."""
    mark = ""
    """What ends an answer; "" is the end of sequence."""
    marks: tuple[str, ...] = ()
    """The other marks, which the model's tokenizer has as tokens."""
    strips = False
    """Whether white space around what is said is left out, as the models' own templates do."""
    roles: tuple[str, ...] = ("system", "user", "assistant", "tool")
    """The roles that it can write."""

    def __init__(self, name: str, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.name = name
        vocabulary = tokenizer.get_vocab()
        marks = (*self.marks, *([self.mark] if self.mark else []))
        self.missing = tuple(mark for mark in marks if mark not in vocabulary)
        end = self.mark if self.mark in vocabulary else tokenizer.eos_token
        if not isinstance(end, str):
            raise ModelError(
                f"template '{name}' ends an answer with the tokenizer's end-of-sequence token, and this "
                "tokenizer has none; set its eos_token."
            )
        self.end = end

    def opening(self, first: Message | None) -> str:
        """Return what stands before the first turn. It may not look at later ones: prompts stay prefixes."""
        return ""

    @abstractmethod
    def turn(self, message: Message) -> str:
        """Return the text of a turn that is not the assistant's."""

    def prepare(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the turns as the template counts them. What stands before an answer may not depend on it."""
        return messages

    def segments(self, messages: Sequence[Message], *, ask: bool, tools: Tools = ()) -> list[Segment]:
        self._check(messages, tools)
        if self.strips:
            messages = [replace(message, content=message.content.strip()) for message in messages]
        turns = self.prepare(messages)
        pieces = [Segment(self.opening(turns[0] if turns else None), False)]
        for message in turns:
            if message.role == "assistant":
                answer = self.answer_lead + message.content + self.end
                pieces.append(Segment(self.answer_header, False))
                pieces.append(Segment(answer, not message.blank))
                pieces.append(Segment(self.gap, False))
            else:
                pieces.append(Segment(self.turn(message), False))
        if ask:
            pieces.append(Segment(self.answer_header, False))
        return pieces

    def _check(self, messages: Sequence[Message], tools: Tools) -> None:
        advice = "take the tokenizer's own chat template, or a .jinja file that does"
        if tools or any(message.tool_calls for message in messages):
            raise DataError(f"template '{self.name}' does not write tools and their calls; {advice}.")
        unknown = [message.role for message in messages if message.role not in self.roles]
        if unknown:
            raise DataError(f"template '{self.name}' has no turns of the {unknown[0]}; {advice}.")


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """Return the turns with each system turn at the head of the user's turn behind it.

    A system turn that no user's turn follows is a user's turn of its own.
    """
    folded: list[Message] = []
    pending = False
    for message in messages:
        if pending and message.role in ("system", "user"):
            head = folded.pop().content
            message = replace(message, content=f"{head}\n\n{message.content}")
        pending = message.role == "system"
        folded.append(replace(message, role="user") if pending else message)
    return folded
