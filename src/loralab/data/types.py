"""The nouns of the data floor: a row becomes `Text` or `Chat`, that becomes an `Example`.

Shape key: B rows of a batch, T tokens of a row.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Text:
    """A document to continue: every token of it is trained."""

    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is "system", "user", "assistant" or "tool"."""

    role: str
    content: str
    input: str = ""
    """The end of `content` that is material for the instruction before it, for a template that sets the
    two apart; "" when the turn has no such part."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation: the assistant's turns are trained, the others are what they answer."""

    messages: tuple[Message, ...]


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
