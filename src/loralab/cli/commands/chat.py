"""``loralab chat``."""

import sys
from typing import Annotated

from cyclopts import Parameter

from loralab.cli.output import Output, Screen


def command(
    *,
    model: str,
    adapter: str | None = None,
    runs: str = "runs",
    compare: Annotated[bool, Parameter(negative=())] = False,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: str = "auto",
    allow_pickle: bool = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Talk to a model, one line at a time. /new forgets what was said, /quit (or Ctrl-D) leaves.

    Parameters
    ----------
    model
        Base model: a folder, a hub id, or "demo".
    adapter
        Adapter: a folder, a run's name, or a hub id.
    runs
        Folder that holds the runs.
    compare
        Let the base answer beside the adapter; each line is then a conversation of its own.
    max_new_tokens
        Longest answer in tokens.
    temperature
        0 takes the likeliest token each time; higher is more random.
    top_p
        Draw from the likeliest tokens that together have this probability.
    seed
        Seed of the draws.
    dtype
        Precision of the base: auto, float32, bfloat16, float16.
    allow_pickle
        Load a base or adapter that is a pickle file.
    """
    from loralab.cli.speak import Speaker
    from loralab.data.types import Message
    from loralab.errors import ConfigError
    from loralab.serving.generate import Sampling

    screen = Screen(output)
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    if compare and adapter is None:
        raise ConfigError("--compare sets an adapter beside the base; name one with --adapter.")
    speaker = Speaker.load(model, adapter, runs, dtype, allow_pickle)
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
