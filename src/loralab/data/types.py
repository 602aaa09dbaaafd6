"""The nouns of the data floor: a row becomes `Text` or `Chat`, that becomes an `Example`.

Shape key: B rows of a batch, T tokens of a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Text:
    """A document to continue: every token of it is trained."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the assistant calls in its turn."""

    name: str
    arguments: Mapping[str, object]
    id: str = ""
    """What the tool's answer names it by; "" if the data has none."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is "system", "user", "assistant" or "tool"."""

    role: str
    content: str
    input: str = ""
    """The end of `content` that is material for the instruction before it, for a template that sets the
    two apart; "" when the turn has no such part."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What the assistant calls, behind its text."""
    tool_call_id: str = ""
    """Of a tool's turn: the call that it answers."""
    name: str = ""
    """Who speaks, of several in one role: the function that a tool's turn is of."""

    @property
    def blank(self) -> bool:
        """Whether nothing is said and nothing called."""
        return not self.content.strip() and not self.tool_calls


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation: the assistant's turns are trained, the others are what they answer."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, object], ...] = ()
    """The functions that the assistant may call: ``{"type": "function", "function": {"name": ...}}``."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids with a loss weight each, ready for a batch.

    `weights[t]` is the weight of the loss for predicting `ids[t]` from the tokens before it, so
    `weights[0]` is always 0. Trained tokens have weight 1.0, prompt tokens 0.0.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    source: str = field(default="", compare=False)
    """Where it comes from: "train.jsonl:118"."""

    @property
    def trained(self) -> int:
        """The number of tokens with a loss weight."""
        return sum(1 for weight in self.weights if weight)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is not trained on, and why."""

    source: str
    reason: str
    row: object
