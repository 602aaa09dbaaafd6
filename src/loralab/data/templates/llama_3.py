"""Llama 3 to 3.3: a header with the role, a blank line, what is said. A tool's role is called ipython."""

from loralab.data.templates._turns import TurnByTurn
from loralab.data.types import Message


class Layout(TurnByTurn):
    """``<|start_header_id|>role<|end_header_id|>\\n\\ncontent<|eot_id|>``, turn after turn."""

    answer_header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    mark = "<|eot_id|>"
    marks = ("<|start_header_id|>", "<|end_header_id|>")
    strips = True

    def turn(self, message: Message) -> str:
        role = "ipython" if message.role == "tool" else message.role
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{message.content}{self.end}"
