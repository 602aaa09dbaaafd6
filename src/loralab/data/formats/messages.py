"""Conversations as OpenAI writes them: ``{"messages": [{"role": "user", "content": "Hi"}, ...]}``.

The assistant may call functions (`tool_calls`), and `tools` may say which there are.
"""

from loralab.data.fields import Row, check_answered
from loralab.data.formats._messages import SPOKEN, read_messages, read_tools
from loralab.data.types import Chat

COLUMNS = ("messages",)
OPTIONAL = ("tools",)
TEMPLATE = "chatml"


def parse(row: Row, source: str) -> Chat:
    """Return the conversation.

    Raises:
        DataError: it is badly nested, empty, has an unknown role or no assistant turn.
    """
    messages = read_messages(row, "messages", source)
    check_answered(messages, f"{source}: 'messages'", SPOKEN)
    return Chat(messages, read_tools(row, source))
