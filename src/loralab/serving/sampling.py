"""How the next token is chosen, each request in its own way.

Shape key: B requests, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loralab.errors import ConfigError

__all__ = ["Sampler", "Sampling", "choose"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the likeliest (temperature 0), or drawn."""

    max_new_tokens: int = 200
    temperature: float = 0.0
    top_p: float = 1.0
    """Of the likeliest tokens, as many as have this probability together."""
    top_k: int = 0
    """Of the likeliest tokens, this many; 0: all."""
    seed: int | None = 0
    """Equal seeds draw equal tokens, whoever else is in the batch; None: another seed each time."""
    stop: tuple[str, ...] = ()
    """Texts at which the answer ends, and which are not in it."""
    logprobs: int | None = None
    """Tell the logarithm of each token's probability, and of this many of the likeliest others."""
    ignore_eos: bool = False
    """Go on to the last token whatever is written; for measurements."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1.")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature is {self.temperature}; expected 0 (no chance) or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; expected a share above 0, up to 1.")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}; expected 0 (all tokens) or more.")
        if "" in self.stop:
            raise ConfigError("stop has an empty text, at which every answer would end before it begins.")
        if self.logprobs is not None and not 0 <= self.logprobs <= 20:
            raise ConfigError(f"logprobs is {self.logprobs}; expected 0 to 20.")


class Sampler:
    """Chooses the tokens of one request, with random numbers of its own."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed % (1 << 63))

    def draw(self, logits_V: Tensor) -> int:
        """Return the next token, drawn from the logits in fp32."""
        sampling = self.sampling
        scores_V, tokens_V = (logits_V / max(sampling.temperature, 1e-5)).sort(descending=True, stable=True)
        if sampling.top_k:
            scores_V, tokens_V = scores_V[: sampling.top_k], tokens_V[: sampling.top_k]
        chances_V = scores_V.softmax(-1)
        if sampling.top_p < 1:
            # A token stays if those before it have less than top_p together.
            stays_V = chances_V.cumsum(-1) - chances_V < sampling.top_p
            # The likeliest stays also where top_p is too small for fp32.
            stays_V[0] = True
            chances_V = chances_V[stays_V]
        drawn = torch.multinomial(chances_V.cpu(), 1, generator=self._random)
        return int(tokens_V[int(drawn)])


def choose(logits_BV: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Return the next token of each request, given its logits in fp32."""
    chosen = logits_BV.argmax(-1).tolist()
    for row, sampler in enumerate(samplers):
        if sampler.sampling.temperature > 0:
            chosen[row] = sampler.draw(logits_BV[row])
    return [int(token) for token in chosen]
