"""Every turn as it stands, with nothing before, between or behind: for prompts that are written already."""

from loralab.data.templates._turns import TurnByTurn
from loralab.data.types import Message


class Layout(TurnByTurn):
    """``content``, turn after turn."""

    def turn(self, message: Message) -> str:
        return message.content
