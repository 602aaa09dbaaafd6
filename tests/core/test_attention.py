"""Attention over documents against the formula in float64, in both ways in which it is computed."""

import pytest
import torch
from torch import Tensor

import loralab.core.attention as attention
from loralab.core.attention import document_attention

SIZE = 16
BOUNDS = {
    "one": [0, 40],
    "short": [0, 1, 3, 20, 52, 53],
    "longer than a block": [0, 300, 317, 450],
}


def heads(count: int, tokens: int, seed: int) -> Tensor:
    """[count, tokens, SIZE], laid out as a projection makes it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, count, SIZE, generator=generator).transpose(0, 1)


def formula(q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float, window: int) -> Tensor:
    place = torch.arange(q.shape[1])
    document = torch.bucketize(place, torch.tensor(bounds), right=True)
    seen = (document[:, None] == document) & (place[:, None] >= place)
    if window:
        seen &= place[:, None] - place < window
    k, v = (t.repeat_interleave(len(q) // len(t), 0) for t in (k, v))
    scores = (q @ k.mT * scale).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("tiles", [True, False], ids=["fused", "blockwise"])
@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_output_and_gradients_are_those_of_the_formula(
    bounds: list[int], groups: int, window: int, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_has_tiles", lambda: tiles)
    tokens = bounds[-1]
    given = [heads(count, tokens, seed).bfloat16() for seed, count in enumerate((4, groups, groups))]
    weight = heads(4, tokens, 3).bfloat16()
    found = []
    for dtype, compute in ((torch.bfloat16, document_attention), (torch.float64, formula)):
        q, k, v = (t.to(dtype).detach().requires_grad_() for t in given)
        options = {"window": window} if compute is document_attention else {}
        args = () if options else (window,)
        out = compute(q, k, v, bounds, 0.3, *args, **options)
        found.append((out.detach(), *torch.autograd.grad(out, (q, k, v), weight.to(dtype))))
    for ours, exact in zip(*found, strict=True):
        assert ours.shape == exact.shape
        assert float((ours.double() - exact).norm()) < 0.01 * float(exact.norm()) + 1e-6


def test_the_two_ways_are_both_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    q = heads(2, 8, 0)
    monkeypatch.setattr(attention, "_has_tiles", lambda: False)
    assert attention._blockwise(q.bfloat16())
    assert not attention._blockwise(q)
    monkeypatch.setattr(attention, "_has_tiles", lambda: True)
    assert not attention._blockwise(q.bfloat16())


def test_values_may_be_of_another_size_than_keys() -> None:
    q, k = heads(2, 9, 0).bfloat16(), heads(2, 9, 1).bfloat16()
    v = torch.randn(2, 9, 5).bfloat16()
    assert document_attention(q, k, v, [0, 4, 9], 0.25).shape == (2, 9, 5)


def test_dropout_hides_tokens() -> None:
    torch.manual_seed(0)
    q, k, v = (heads(2, 64, seed).bfloat16() for seed in range(3))
    plain = document_attention(q, k, v, [0, 64], 0.25)
    first = document_attention(q, k, v, [0, 64], 0.25, dropout=0.5)
    second = document_attention(q, k, v, [0, 64], 0.25, dropout=0.5)
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain)


def test_nothing_of_a_neighbour_gets_in_not_even_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_has_tiles", lambda: False)
    q, k, v = (heads(2, 40, seed).bfloat16() for seed in range(3))
    for tensor in (q, k, v):
        tensor[:, 21:] = float("nan")
    given = [t.requires_grad_() for t in (q, k, v)]
    out = document_attention(*given, [0, 21, 40], 0.25)
    grads = torch.autograd.grad(out, given, torch.ones_like(out))
    for tensor in (out, *grads):
        assert not tensor[:, :21].isnan().any()
        assert tensor[:, 21:].isnan().any()
