"""The output head and its loss as one function: what `F.cross_entropy` gives over all the scores."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loralab.core import loss
from loralab.core.loss import head_loss
from loralab.core.products import times


def case(dtype: torch.dtype, tokens: int = 37, bias: bool = True) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 12, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(50, 12, generator=generator).to(dtype).requires_grad_()
    offset = torch.randn(50, generator=generator).to(dtype).requires_grad_() if bias else None
    targets = torch.randint(0, 50, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator)
    return hidden, weight, offset, targets, weights  # type: ignore[return-value]


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor) -> Tensor:
    scores = F.linear(hidden, weight, bias).float()
    return (F.cross_entropy(scores, targets, reduction="none") * weights).sum()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("block", [1, 170, 1 << 22])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_loss_and_gradients_are_those_of_all_the_scores(
    precision: torch.dtype, block: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_BLOCK", block)
    ours, theirs = case(precision, bias=bias), case(precision, bias=bias)
    mine, expected = head_loss(*ours), plain(*theirs)
    torch.testing.assert_close(mine, expected, rtol=1e-6, atol=0)
    (mine / 7).backward()
    (expected / 7).backward()
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if precision == torch.float32 else {"rtol": 2e-2, "atol": 1e-2}
    for one, other in zip(ours[:3], theirs[:3], strict=True):
        if one is not None:
            torch.testing.assert_close(one.grad, other.grad, **tolerance)


def test_a_frozen_head_gets_no_gradient_and_a_loss_alone_makes_none() -> None:
    hidden, weight, bias, targets, weights = case(torch.float32)
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    head_loss(hidden, weight, bias, targets, weights).backward()
    assert hidden.grad is not None
    assert weight.grad is None
    with torch.no_grad():
        assert not head_loss(hidden, weight, bias, targets, weights).requires_grad


def test_no_trained_token_is_a_loss_of_zero() -> None:
    hidden, weight, bias, targets, weights = case(torch.float32, tokens=0)
    value = head_loss(hidden, weight, bias, targets, weights)
    value.backward()
    assert value.item() == 0
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, 12)


def test_the_scores_of_all_tokens_are_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_BLOCK", 500)
    seen = []
    monkeypatch.setattr(loss, "times", lambda *args: seen.append(args[0].shape[0]) or times(*args))
    head_loss(*case(torch.float32))
    assert max(seen) == 10
    assert sum(seen) == 37 * 2, "the scores, and their gradient"
