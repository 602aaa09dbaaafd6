"""A question and its answer: ``{"question": "Who wrote it?", "context": "A tale by ...", "answer": "Poe."}``.

`context`, what the question is about, may be missing, empty or null, and so may `system`.
"""

from loralab.data.fields import Row, optional_text, read_text
from loralab.data.types import Chat, Message

COLUMNS = ("question", "answer")
OPTIONAL = ("context", "system")
TEMPLATE = "plain"


def parse(row: Row, source: str) -> Chat:
    """Return the question, with its context below a blank line, and the answer.

    Raises:
        DataError: a column is no string.
    """
    question = read_text(row, "question", source)
    context, system = (optional_text(row, column, source) for column in OPTIONAL)
    asked = Message("user", f"{question}\n\n{context}" if context else question, context)
    answer = Message("assistant", read_text(row, "answer", source))
    return Chat((Message("system", system), asked, answer) if system else (asked, answer))
