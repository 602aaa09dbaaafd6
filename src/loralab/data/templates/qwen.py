"""Qwen 2.5: ChatML with a system turn of its own, unless the conversation begins with one."""

from collections.abc import Sequence

from loralab.data.templates import chatml
from loralab.data.types import Message

_SYSTEM = Message("system", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")


class Layout(chatml.Layout):
    """ChatML; what tools answer stands in a user's turn, the answers of one round in one."""

    def opening(self, first: Message | None) -> str:
        return "" if first is not None and first.role == "system" else super().turn(_SYSTEM)

    def prepare(self, messages: Sequence[Message]) -> list[Message]:
        turns: list[Message] = []
        for index, message in enumerate(messages):
            if message.role != "tool":
                turns.append(message)
                continue
            text = f"<tool_response>\n{message.content}\n</tool_response>"
            if index and messages[index - 1].role == "tool":
                text = f"{turns.pop().content}\n{text}"
            turns.append(Message("user", text))
        return turns
