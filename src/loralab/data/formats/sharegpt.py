"""ShareGPT's conversations: ``{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", ...}]}``.

A `function_call` is the model's own output, so it is an assistant turn; an `observation` is the tool's.
"""

from loralab.data.fields import Row, read_text, read_turns
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


def parse(row: Row, source: str) -> Chat:
    """Return the conversation, opened by the `system` column if the row has one.

    Raises:
        DataError: it is badly nested, empty, has an unknown speaker or no assistant turn.
    """
    turns = read_turns(row, "conversations", ("from", "value"), _ROLES, source)
    system = read_text(row, "system", source) if row.get("system") is not None else ""
    return Chat((Message("system", system), *turns) if system else turns)
