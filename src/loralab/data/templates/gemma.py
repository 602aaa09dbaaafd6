"""Gemma, Gemma 2 and 3: turns of user and model; a system turn stands at the head of the user's."""

from collections.abc import Sequence

from loralab.data.templates._turns import TurnByTurn, fold_system
from loralab.data.types import Message


class Layout(TurnByTurn):
    """``<start_of_turn>user\\ncontent<end_of_turn>\\n``, turn after turn."""

    answer_header = "<start_of_turn>model\n"
    gap = "\n"
    mark = "<end_of_turn>"
    marks = ("<start_of_turn>",)
    strips = True
    roles = ("system", "user", "assistant")

    def prepare(self, messages: Sequence[Message]) -> list[Message]:
        return fold_system(messages)

    def turn(self, message: Message) -> str:
        return f"<start_of_turn>user\n{message.content}{self.end}\n"
