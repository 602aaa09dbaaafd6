"""Stanford Alpaca's rows: ``{"instruction": "Translate.", "input": "chat", "output": "cat"}``.

`input` may be missing, empty or null, and so may `system`.
"""

from loralab.data.fields import Row, optional_text, read_text
from loralab.data.types import Chat, Message

COLUMNS = ("instruction", "output")
OPTIONAL = ("input", "system")
TEMPLATE = "alpaca"


def parse(row: Row, source: str) -> Chat:
    """Return the instruction, with its input below a blank line, and the answer.

    Raises:
        DataError: a column is no string.
    """
    instruction = read_text(row, "instruction", source)
    given, system = (optional_text(row, column, source) for column in OPTIONAL)
    content = f"{instruction}\n\n{given}" if given else instruction
    question = Message("user", content, given)
    answer = Message("assistant", read_text(row, "output", source))
    return Chat((Message("system", system), question, answer) if system else (question, answer))
