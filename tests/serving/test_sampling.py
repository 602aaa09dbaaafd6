"""Tokens are drawn from the probabilities that transformers' warpers give."""

from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from loralab.serving.sampling import Sampler, Sampling, choose

DRAWS = 6000


def warped(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The probabilities as `generate` has them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    ids: Any = None
    return warpers(ids, logits[None])[0].softmax(-1)


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 0.8, "top_k": 8, "top_p": 0.5},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 1e-6},
    ],
    ids=str,
)
def test_draws_have_the_probabilities_of_transformers(how: dict[str, Any]) -> None:
    logits = torch.randn(24, generator=torch.Generator().manual_seed(1)) * 2
    sampling = Sampling(seed=5, **how)
    sampler, wanted = Sampler(sampling), warped(logits, sampling)
    counts = torch.zeros(24)
    for _ in range(DRAWS):
        counts[sampler.draw(logits)] += 1
    assert not bool((counts[wanted == 0] > 0).any()), "a token that was cut off is never drawn"
    shares = counts / DRAWS
    # Six standard deviations of a share.
    assert bool(((shares - wanted).abs() <= 6 * (wanted * (1 - wanted) / DRAWS).sqrt() + 1e-6).all())


def test_greedy_and_drawn_side_by_side() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    samplers = [Sampler(Sampling(temperature=t, seed=7)) for t in (0.0, 1.0, 0.0)]
    chosen = choose(logits, samplers)
    assert (chosen[0], chosen[2]) == (int(logits[0].argmax()), int(logits[2].argmax()))
    assert chosen[1] == Sampler(Sampling(temperature=1.0, seed=7)).draw(logits[1])


def test_a_seed_is_a_stream_of_its_own() -> None:
    logits = torch.randn(40, 30, generator=torch.Generator().manual_seed(3))

    def draw(seed: int | None, disturb: bool = False) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.5, seed=seed))
        found = []
        for row in logits:
            if disturb:
                torch.rand(5)
            found.append(sampler.draw(row))
        return found

    assert draw(1) == draw(1, disturb=True)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)
    assert draw(-1) == draw(-1)
    assert draw(1 << 70) == draw(1 << 70)


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(4))
    sampler = Sampler(Sampling(temperature=1e-30))
    assert {sampler.draw(logits) for _ in range(20)} == {int(logits.argmax())}
