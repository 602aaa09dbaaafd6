"""The probabilities of tokens as OpenAI's two routes have them."""

from collections.abc import Sequence
from typing import Any

from loralab.serving.requests import Chosen

__all__ = ["of_chat", "of_completion"]

_LEAST = -9999.0
"""JSON has no infinity: what OpenAI's API says of a token that cannot come."""


def of_chat(tokens: Sequence[Chosen]) -> dict[str, Any]:
    """Return the tokens of a chat's answer, each with the likeliest."""
    content = [
        {
            **_token(chosen.text, chosen.logprob),
            "top_logprobs": [_token(text, logprob) for _, text, logprob in chosen.top],
        }
        for chosen in tokens
    ]
    return {"content": content, "refusal": None}


def of_completion(tokens: Sequence[Chosen], offset: int) -> dict[str, Any]:
    """Return the tokens of a text that begins at character `offset`."""
    offsets = []
    for chosen in tokens:
        offsets.append(offset)
        offset += len(chosen.text)
    return {
        "tokens": [chosen.text for chosen in tokens],
        "token_logprobs": [_finite(chosen.logprob) for chosen in tokens],
        "top_logprobs": [{text: _finite(logprob) for _, text, logprob in chosen.top} for chosen in tokens],
        "text_offset": offsets,
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
