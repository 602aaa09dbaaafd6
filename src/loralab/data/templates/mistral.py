"""Mistral 7B Instruct 0.3 and Mixtral: questions between [INST] marks; a system turn stands in the first.

Mistral's own template sets the system turn into the last question, so that earlier text changes as the
conversation goes on; here it is the question behind it, which for the first question is the same.
"""

from collections.abc import Sequence

from loralab.data.templates._turns import TurnByTurn, fold_system
from loralab.data.types import Message


class Layout(TurnByTurn):
    """``[INST] content[/INST] answer</s>``, turn after turn."""

    answer_lead = " "
    marks = ("[INST]", "[/INST]")
    strips = True
    roles = ("system", "user", "assistant")

    def prepare(self, messages: Sequence[Message]) -> list[Message]:
        return fold_system(messages)

    def turn(self, message: Message) -> str:
        return f"[INST] {message.content}[/INST]"
