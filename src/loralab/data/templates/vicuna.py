"""Vicuna 1.1 (github.com/lm-sys/FastChat); a system turn replaces its opening."""

from loralab.data.templates._turns import TurnByTurn
from loralab.data.types import Message


class Layout(TurnByTurn):
    """``USER: content ASSISTANT: content</s>``, all on one line."""

    answer_header = "ASSISTANT:"
    answer_lead = " "

    def opening(self, first: Message | None) -> str:
        if first is not None and first.role == "system":
            return ""
        return (
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        )

    def turn(self, message: Message) -> str:
        if message.role == "system":
            return f"{message.content} "
        return f"{message.role.upper()}: {message.content} "
