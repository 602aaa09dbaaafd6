"""OpenAI's chat markup, which many models use."""

from loralab.data.templates._turns import TurnByTurn
from loralab.data.types import Message


class Layout(TurnByTurn):
    """``<|im_start|>role\\ncontent<|im_end|>\\n``, turn after turn."""

    answer_header = "<|im_start|>assistant\n"
    gap = "\n"
    mark = "<|im_end|>"
    marks = ("<|im_start|>",)

    def turn(self, message: Message) -> str:
        return f"<|im_start|>{message.role}\n{message.content}{self.end}\n"
