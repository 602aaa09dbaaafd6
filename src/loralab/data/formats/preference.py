"""Rows for preference training, as supervised data: ``{"prompt": "Hi", "chosen": "Yes", "rejected": "No"}``.

`chosen` is a text or a list of messages. The prompt is a column of its own, likewise, or stands at the head
of `chosen`: in a list as messages, in a text as Anthropic's ``\\n\\nHuman: ...\\n\\nAssistant: ...``.
`rejected` is not read: it is what the model should not say.
"""

import re

from loralab.data.fields import Row, check_answered, optional_text, read_text
from loralab.data.formats._messages import SPOKEN, read_messages, read_tools
from loralab.data.types import Chat, Message
from loralab.errors import DataError

COLUMNS = ("chosen",)
OPTIONAL = ("prompt", "system", "tools")
TEMPLATE = "chatml"

_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse(row: Row, source: str) -> Chat:
    """Return the prompt and the chosen answer.

    Raises:
        DataError: a column is neither text nor messages, there is no prompt, or no answer.
    """
    prompt = _read_prompt(row, source)
    if isinstance(row["chosen"], list):
        chosen = read_messages(row, "chosen", source)
        check_answered(chosen, f"{source}: 'chosen'", SPOKEN)
        messages = _join(prompt, chosen, source)
    else:
        text = read_text(row, "chosen", source)
        messages = (*prompt, Message("assistant", text)) if prompt else _read_transcript(text, source)
    system = optional_text(row, "system", source)
    return Chat((Message("system", system), *messages) if system else messages, read_tools(row, source))


def _read_prompt(row: Row, source: str) -> tuple[Message, ...]:
    if isinstance(row.get("prompt"), list):
        return read_messages(row, "prompt", source)
    text = optional_text(row, "prompt", source)
    turns = _split(text)
    if turns and turns[-1] == Message("assistant", ""):
        return turns[:-1]
    return (Message("user", text),) if text else ()


def _join(prompt: tuple[Message, ...], chosen: tuple[Message, ...], source: str) -> tuple[Message, ...]:
    """Set the prompt before the answer, unless the answer comes with it."""
    if chosen[0].role == "assistant":
        if not prompt:
            raise DataError(
                f"{source}: 'chosen' begins with the assistant's turn, and there is no 'prompt' before it."
            )
        return (*prompt, *chosen)
    asked = [message.content for message in chosen if message.role == "user"]
    missing = [
        message.content for message in prompt if message.role == "user" and message.content not in asked
    ]
    if missing:
        raise DataError(
            f"{source}: 'chosen' begins with a turn of the {chosen[0].role}, so it should have the whole "
            f"conversation, but {missing[0][:40]!r} of 'prompt' is not in it."
        )
    return chosen


def _read_transcript(text: str, source: str) -> tuple[Message, ...]:
    turns = _split(text)
    if not turns or turns[-1].role != "assistant":
        raise DataError(
            f"{source}: 'chosen' is a text without a 'prompt'; name the column of the prompt (--columns "
            r"prompt=NAME), or write both as '\n\nHuman: ...\n\nAssistant: ...'."
        )
    return turns


def _split(text: str) -> tuple[Message, ...]:
    """Return the turns of a transcript, none if the text is not one."""
    head, *pieces = _SPEAKER.split(text)
    if head.strip() or not pieces:
        return ()
    return tuple(
        Message(_ROLES[speaker], said.strip())
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    )
