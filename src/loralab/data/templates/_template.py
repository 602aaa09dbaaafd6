"""What a template is held to.

It writes the same text before an answer whether the answer follows (training) or is asked for (generation).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loralab.data.types import Chat, Message

__all__ = ["Segment", "Template"]

Tools = Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the text of a conversation. `trained` is for an answer and the mark that ends it."""

    text: str
    trained: bool


class Template(ABC):
    """A way to write conversations."""

    name: str
    missing: tuple[str, ...] = ()
    """The marks of the template that are no tokens of the tokenizer, so that they are spelled out, or the
    end-of-sequence token stands for them. A template in Jinja does not say what its marks are."""
    jinja: str = ""
    """The text of a template that came as a file of Jinja: what speaks to the adapter needs it."""

    @abstractmethod
    def segments(self, messages: Sequence[Message], *, ask: bool, tools: Tools = ()) -> list[Segment]:
        """Return the text of `messages`; with `ask`, also what stands before the assistant's next answer.

        The segments before an answer are those of `segments(the messages before it, ask=True)`. A blank
        answer is not trained.

        Args:
            tools: the functions that the assistant may call.

        Raises:
            DataError: the template cannot write this conversation.
        """

    def render(self, chat: Chat, *, last_only: bool = False) -> list[Segment]:
        """Return the whole conversation for training, with `last_only` up to its last answer.

        Raises:
            DataError: the template cannot write this conversation.
        """
        end = last_answer(chat) + 1 if last_only else len(chat.messages)
        return self.segments(chat.messages[:end], ask=False, tools=chat.tools)

    def prompt_text(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """Return the text that training showed before an answer to `messages`, for a model to go on from."""
        return "".join(segment.text for segment in self.segments(messages, ask=True, tools=tools))


def last_answer(chat: Chat) -> int:
    """Return the place of the assistant's last turn; of a conversation without one, that of the last turn."""
    places = [place for place, message in enumerate(chat.messages) if message.role == "assistant"]
    return places[-1] if places else len(chat.messages) - 1
