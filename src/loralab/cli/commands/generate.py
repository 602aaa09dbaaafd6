"""``loralab generate``."""

import sys
from typing import Annotated

from cyclopts import Parameter

from loralab.cli.output import Output, Screen
from loralab.errors import ConfigError


def command(
    prompt: str | None = None,
    /,
    *,
    model: str,
    adapter: str | None = None,
    runs: str = "runs",
    raw: Annotated[bool, Parameter(negative=())] = False,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: str = "auto",
    allow_pickle: bool = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Answer one prompt, given as an argument or on standard input.

    The prompt is put into the template that the adapter was trained with; an adapter for raw text, and a base
    without a chat template, continue it as it stands.

    Parameters
    ----------
    prompt
        The prompt; left out, it is read from standard input.
    model
        Base model: a folder, a hub id, or "demo".
    adapter
        Adapter: a folder, a run's name, or a hub id.
    runs
        Folder that holds the runs.
    raw
        Continue the prompt as it stands, without a template.
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
    from loralab.serving.generate import Sampling

    screen = Screen(output)
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    text = sys.stdin.read() if prompt is None else prompt
    if not text.strip():
        raise ConfigError("the prompt is empty; give it as an argument or on standard input.")
    speaker = Speaker.load(model, adapter, runs, dtype, allow_pickle)
    pieces = []
    for piece in speaker.answer(text, sampling, raw=raw):
        screen.write(piece)
        pieces.append(piece)
    screen.say()
    screen.data({"prompt": text, "text": "".join(pieces)})
