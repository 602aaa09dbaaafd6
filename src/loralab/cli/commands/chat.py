"""``loralab chat``."""

import sys
from typing import Annotated

from cyclopts import Parameter

from loralab.cli.options import Voice
from loralab.cli.output import Output, Screen


def command(
    *,
    voice: Voice,
    compare: Annotated[bool, Parameter(negative=())] = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Talk to a model, one line at a time. /new forgets what was said, /quit (or Ctrl-D) leaves.

    Parameters
    ----------
    compare
        Let the base answer beside the adapter; each line is then a conversation of its own.
    """
    from loralab.cli.findings import warn
    from loralab.cli.speak import Speaker
    from loralab.data.types import Message
    from loralab.errors import ConfigError
    from loralab.serving.generate import Sampling

    screen = Screen(output)
    sampling = Sampling(voice.max_new_tokens, voice.temperature, voice.top_p, voice.seed)
    if compare and voice.adapter is None:
        raise ConfigError("--compare sets an adapter beside the base; name one with --adapter.")
    speaker = Speaker.load(voice)
    warn(speaker.doubt)
    said: list[Message] = []

    def answer(label: str, alone: bool) -> str:
        screen.write(f"{label}> ")
        pieces = []
        for piece in speaker.answer(said, sampling, alone=alone):
            screen.write(piece)
            pieces.append(piece)
        screen.say()
        return "".join(pieces)

    while True:
        if sys.stdin.isatty():
            screen.write("you> ")
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return
        if line.strip() == "/new":
            said.clear()
        if not line.strip() or line.strip() == "/new":
            continue
        if compare:
            said = [Message("user", line.strip())]
            answers = {"base": answer("base", True), "adapter": answer("adapter", False)}
            screen.data({"prompt": line.strip(), **answers})
            continue
        said.append(Message("user", line.strip()))
        text = answer("model", False)
        said.append(Message("assistant", text))
        screen.data({"prompt": line.strip(), "text": text})
