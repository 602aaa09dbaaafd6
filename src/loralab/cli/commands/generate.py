"""``loralab generate``."""

import sys
from typing import Annotated

from cyclopts import Parameter

from loralab.cli.options import Voice
from loralab.cli.output import Output, Screen
from loralab.errors import ConfigError


def command(
    prompt: str | None = None,
    /,
    *,
    voice: Voice,
    raw: Annotated[bool, Parameter(negative=())] = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Answer one prompt, given as an argument or on standard input.

    The prompt is put into the template that the adapter was trained with; an adapter for raw text, and a base
    without a chat template, continue it as it stands.

    Parameters
    ----------
    prompt
        The prompt; left out, it is read from standard input.
    raw
        Continue the prompt as it stands, without a template.
    """
    from loralab.cli.findings import warn
    from loralab.cli.speak import Speaker
    from loralab.serving.generate import Sampling

    screen = Screen(output)
    sampling = Sampling(voice.max_new_tokens, voice.temperature, voice.top_p, voice.seed)
    text = sys.stdin.read() if prompt is None else prompt
    if not text.strip():
        raise ConfigError("the prompt is empty; give it as an argument or on standard input.")
    speaker = Speaker.load(voice)
    warn(speaker.doubt)
    pieces = []
    for piece in speaker.answer(text, sampling, raw=raw):
        screen.write(piece)
        pieces.append(piece)
    screen.say()
    screen.data({"prompt": text, "text": "".join(pieces)})
