"""A prompt and what should follow it: ``{"prompt": "name[The Punter]", "completion": "The ..."}``."""

from loralab.data.fields import Row, read_text
from loralab.data.types import Chat, Message

COLUMNS = ("prompt", "completion")
OPTIONAL: tuple[str, ...] = ()
TEMPLATE = "plain"


def parse(row: Row, source: str) -> Chat:
    """Return a user's turn and the assistant's; `DataError` if either is no string."""
    prompt = Message("user", read_text(row, "prompt", source))
    return Chat((prompt, Message("assistant", read_text(row, "completion", source))))
