"""Every turn on a line of its own, nothing else."""

from loralab.data.templates._turns import TurnByTurn
from loralab.data.types import Message


class Layout(TurnByTurn):
    """``content\\n``, turn after turn."""

    def turn(self, message: Message) -> str:
        return f"{message.content}\n"
