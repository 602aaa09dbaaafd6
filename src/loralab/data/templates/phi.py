"""Phi 3 and 3.5: a role's own token, what is said, an end token, each on a line."""

from loralab.data.templates._turns import TurnByTurn
from loralab.data.types import Message


class Layout(TurnByTurn):
    """``<|user|>\\ncontent<|end|>\\n``, turn after turn."""

    answer_header = "<|assistant|>\n"
    gap = "\n"
    mark = "<|end|>"
    marks = ("<|system|>", "<|user|>", "<|assistant|>")
    roles = ("system", "user", "assistant")

    def turn(self, message: Message) -> str:
        return f"<|{message.role}|>\n{message.content}{self.end}\n"
