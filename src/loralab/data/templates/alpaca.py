"""Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca); a system turn replaces its opening."""

from loralab.data.templates._turns import TurnByTurn
from loralab.data.types import Message


class Layout(TurnByTurn):
    """``### Instruction:``, ``### Input:``, ``### Response:``."""

    answer_header = "### Response:\n"
    gap = "\n\n"

    def opening(self, first: Message | None) -> str:
        if first is not None and first.role == "system":
            return ""
        task = "Below is an instruction that describes a task"
        if first is not None and first.input:
            task += ", paired with an input that provides further context"
        return f"{task}. Write a response that appropriately completes the request.\n\n"

    def turn(self, message: Message) -> str:
        if message.role == "system":
            return f"{message.content}\n\n"
        if message.role == "tool":
            return f"### Tool:\n{message.content}\n\n"
        if not message.input:
            return f"### Instruction:\n{message.content}\n\n"
        instruction = message.content.removesuffix(message.input).rstrip("\n")
        return f"### Instruction:\n{instruction}\n\n### Input:\n{message.input}\n\n"
