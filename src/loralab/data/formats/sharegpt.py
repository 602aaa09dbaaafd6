"""ShareGPT's conversations: ``{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", ...}]}``.

A `function_call` is the model's own output, so it is an assistant turn; an `observation` is the tool's.
"""

from loralab.data.fields import (
    Row,
    Turn,
    check_answered,
    check_trainable,
    optional_text,
    read_role,
    read_text,
    read_turns,
)
from loralab.data.types import Chat, Message

COLUMNS = ("conversations",)
OPTIONAL = ("system",)
TEMPLATE = "vicuna"

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_SPOKEN = " or ".join(f"'from' {name!r}" for name, role in _ROLES.items() if role == "assistant")


def parse(row: Row, source: str) -> Chat:
    """Return the conversation, opened by the `system` column if the row has one.

    Raises:
        DataError: it is badly nested, empty, has an unknown speaker or no assistant turn.
    """
    turns = tuple(_read_turn(turn, where) for turn, where in read_turns(row, "conversations", source))
    check_answered(turns, f"{source}: 'conversations'", _SPOKEN)
    system = optional_text(row, "system", source)
    return Chat((Message("system", system), *turns) if system else turns)


def _read_turn(turn: Turn, where: str) -> Message:
    check_trainable(turn, where)
    return Message(read_role(turn, ("from", "value"), _ROLES, where), read_text(turn, "value", where))
