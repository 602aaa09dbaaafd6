"""Both libraries give the product, and the faster is asked only where it is."""

import pytest
import torch

from loralab.core import products
from loralab.core.products import times

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("precision", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 9, 70])
def test_the_product_is_that_of_float64(
    tokens: int, precision: torch.dtype, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: slow)
    x, weight, bias = torch.randn(tokens, 33), torch.randn(20, 33), torch.randn(20)
    exact = x.double() @ weight.double().t()
    atol = TOLERANCE[precision] * 33
    given = [tensor.to(precision) for tensor in (x, weight, bias)]
    torch.testing.assert_close(times(*given[:2]).double(), exact, rtol=0, atol=atol)
    torch.testing.assert_close(times(*given).double(), exact + bias.double(), rtol=0, atol=atol)
    # A weight that lies the other way round, as in the backward pass.
    across = given[1].t().contiguous().t()
    torch.testing.assert_close(times(given[0], across).double(), exact, rtol=0, atol=atol)
