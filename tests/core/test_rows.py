"""Few tokens in a precision of their own, and batches whose rows have adapters of their own."""

import pytest
import torch
from torch import Tensor, nn

from loralab.core.config import LoraConfig
from loralab.core.function import Segment, lora_linears, low_rank, low_rank_rows
from loralab.core.model import LoraModel
from loralab.errors import AdapterError

DOUBLE, BF16 = torch.float64, torch.bfloat16


def model(dtype: torch.dtype = DOUBLE) -> LoraModel:
    """Adapters of several ranks and scales, one that leaves a layer alone, and one of another kind."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 8)).to(dtype)
    both = {"target_modules": ["0", "2"], "init_lora_weights": False}
    adapted = LoraModel(base, LoraConfig(r=4, **both), "four")  # type: ignore[arg-type]
    adapted.attach("eight", LoraConfig(r=8, lora_alpha=3, **both))  # type: ignore[arg-type]
    adapted.attach("last", LoraConfig(r=2, target_modules=["2"], init_lora_weights=False))
    adapted.attach("dora", LoraConfig(r=3, use_dora=True, **both))  # type: ignore[arg-type]
    return adapted.eval()


def one_by_one(adapted: LoraModel, x: Tensor, rows: list[str]) -> Tensor:
    outputs = []
    for part, name in zip(x.chunk(len(rows)), rows, strict=True):
        adapted.set_adapter([] if name == "__base__" else name)
        outputs.append(adapted(part))
    return torch.cat(outputs)


@pytest.mark.parametrize(
    "rows",
    [
        ["four", "eight"],
        ["four", "__base__", "last", "eight"],
        ["__base__"],
        ["eight", "dora"],
        ["last", "last", "four"],
    ],
)
@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 24)])
@pytest.mark.parametrize("repeat", [1, 2])
def test_each_row_has_its_adapter(rows: list[str], shape: tuple[int, ...], repeat: int) -> None:
    adapted = model()
    x = torch.randn(len(rows) * repeat, *shape, dtype=DOUBLE)
    with adapted.rows(rows):
        together = adapted(x)
    torch.testing.assert_close(together, one_by_one(adapted, x, rows))


def test_rows_that_do_not_fit_are_refused() -> None:
    adapted = model()
    with adapted.rows(["four", "eight"]), pytest.raises(AdapterError, match="2 entries for a batch of 3"):
        adapted(torch.randn(3, 24, dtype=DOUBLE))


@pytest.mark.parametrize("tokens", [1, 4])
def test_few_tokens_are_computed_in_the_precision_of_the_factors(tokens: int) -> None:
    torch.manual_seed(0)
    x, a_RI, b_OR = torch.randn(tokens, 64).to(BF16), torch.randn(4, 64), torch.randn(32, 4)
    exact = 0.5 * (x.double() @ a_RI.double().t() @ b_OR.double().t())
    for term in (low_rank(x, (a_RI, b_OR, 0.5)), low_rank_rows(x[None], [(a_RI, b_OR, 0.5)])[0]):
        assert torch.equal(term.to(BF16), exact.to(BF16))
    assert low_rank(x, (a_RI, b_OR, 0.5)).dtype == BF16


@pytest.mark.parametrize("tokens", [2, 40])
def test_the_output_is_the_same_with_and_without_gradients(tokens: int) -> None:
    torch.manual_seed(0)
    x, weight_OI = torch.randn(tokens, 64).to(BF16), torch.randn(32, 64).to(BF16)
    factors = (torch.randn(4, 64).requires_grad_(), torch.randn(32, 4).requires_grad_(), 0.5)
    output = lora_linears(x, [(weight_OI, None)], [Segment((factors,))])[0]
    with torch.no_grad():
        assert torch.equal(lora_linears(x, [(weight_OI, None)], [Segment((factors,))])[0], output)
    grad_a, grad_b = torch.autograd.grad(output.float().square().sum(), factors[:2])
    wide = [tensor.detach().double().requires_grad_() for tensor in factors[:2]]
    wanted = x.double() @ weight_OI.double().t() + 0.5 * (x.double() @ wide[0].t() @ wide[1].t())
    for grad, exact in zip((grad_a, grad_b), torch.autograd.grad(wanted.square().sum(), wide), strict=True):
        assert (grad - exact).norm() < 0.02 * exact.norm()
