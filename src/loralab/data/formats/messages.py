"""Conversations as OpenAI writes them: ``{"messages": [{"role": "user", "content": "Hi"}, ...]}``."""

from loralab.data.fields import Row, read_turns
from loralab.data.types import Chat

COLUMNS = ("messages",)
OPTIONAL: tuple[str, ...] = ()
TEMPLATE = "chatml"

_ROLES = {role: role for role in ("system", "user", "assistant", "tool")}


def parse(row: Row, source: str) -> Chat:
    """Return the conversation.

    Raises:
        DataError: it is badly nested, empty, has an unknown role or no assistant turn.
    """
    return Chat(read_turns(row, "messages", ("role", "content"), _ROLES, source))
