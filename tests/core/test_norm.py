"""RMS norm against autograd over the formula in float64, and what it keeps."""

import pytest
import torch
from torch import Tensor

from loralab.core.norm import rms_norm


def formula(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("shape", [(3, 700, 512), (5, 16), (0, 8)])
def test_output_and_gradient_are_those_of_the_formula(
    shape: tuple[int, ...], precision: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator).to(precision) for _ in range(2))
    weight = torch.randn(shape[-1], generator=generator).to(precision)
    found = []
    for dtype, compute in ((precision, rms_norm), (torch.float64, formula)):
        given = x.detach().to(dtype).requires_grad_()
        out = compute(given, weight.to(dtype), 1e-5)
        found.append((out.detach(), *torch.autograd.grad(out, given, grad.to(dtype))))
    for ours, exact in zip(*found, strict=True):
        assert ours.dtype == precision
        assert float((ours.double() - exact).norm()) <= tolerance * float(exact.norm())


def test_x_and_one_number_a_token_are_kept() -> None:
    kept: list[Tensor] = []
    x = torch.randn(40, 64, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(64, dtype=torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rms_norm(x, weight, 1e-5)
    assert sum(t.numel() * t.element_size() for t in kept) == 40 * 64 * 2 + 64 * 2 + 40 * 4
