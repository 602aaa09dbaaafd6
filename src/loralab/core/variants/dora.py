"""DoRA: direction by LoRA, length by a trained vector (Liu et al. 2024, arXiv 2402.09353).

W' = m * (W + s B A) / |W + s B A|, the norm taken over each output's row and, as the paper proposes in
section 4.3, without a gradient.
"""

import torch
from torch import Tensor, nn

from loralab.core.algebra import product
from loralab.core.variants import State

TENSORS = ("lora_magnitude_vector",)


def create(state: State) -> tuple[Tensor, ...]:
    """Return the lengths of the rows of W + s B A, [O]: at first W' = W + s B A, to the bit."""
    return (row_norms(state),)


def term(state: State, base_out: Tensor, low: Tensor) -> Tensor:
    """Return W' x - W x = (g - 1) W x + g s B A x, with g = m / |W + s B A|."""
    gain = state.per_output(_gain_O(state)).to(base_out.dtype)
    unbiased = base_out if state.bias_O is None else base_out - state.per_output(state.bias_O)
    return (gain - 1) * unbiased + gain * low


def delta(state: State) -> Tensor:
    """Return W' - W, [O, I]."""
    low_OI = product(state.a_RI, state.b_OR, state.scaling)
    weight_OI = state.weight_OI.detach().to(low_OI.dtype)
    return _gain_O(state).detach().to(low_OI.dtype)[:, None] * (weight_OI + low_OI) - weight_OI


def _gain_O(state: State) -> Tensor:
    return state.extra["lora_magnitude_vector"] / _kept_norms(state)


def _kept_norms(state: State) -> Tensor:
    """Return `row_norms`, computed again only after a tensor was changed in place or replaced.

    Torch counts the changes of a tensor, but not those made through its `.data`, as averaging weights does;
    so sums of the tensors are compared as well, which is little work beside the norms.
    """
    kept = state.norms
    if kept is None or torch.compiler.is_compiling() or any(t.is_inference() for t in state.sources):
        return row_norms(state)
    key = (*((id(t), t.data_ptr(), t._version) for t in state.sources), float(state.scaling))
    sums = _sums(state)
    if kept.value_O is None or kept.key != key or kept.sums is None or not torch.equal(kept.sums, sums):
        with torch.inference_mode(False):  # what is made within it cannot be used for gradients afterwards
            kept.key, kept.sums, kept.value_O = key, sums.clone(), row_norms(state)
    return kept.value_O


@torch.no_grad()
def _sums(state: State) -> Tensor:
    """Return the sums of the tensors that norms are made of; what a library packs into bits is left out."""
    plain = [t for t in state.sources if t.is_floating_point() and type(t) in (Tensor, nn.Parameter)]
    return torch.stack([t.sum(dtype=torch.float32) for t in plain])


@torch.no_grad()
def row_norms(state: State) -> Tensor:
    """Return |W + s B A| for each row, [O], without building the sum.

    |w + s b A|^2 = |w|^2 + 2 s <w A^T, b> + s^2 b (A A^T) b^T for the rows w of W and b of B: work of order
    R O I, no [O, I] temporary but the product W A^T's input.
    """
    dtype = torch.promote_types(state.a_RI.dtype, torch.float32)
    a_RI, b_OR, weight_OI = state.a_RI.to(dtype), state.b_OR.to(dtype), state.weight_OI
    base_O: Tensor = torch.linalg.vector_norm(weight_OI, dim=1, dtype=dtype)
    cross_OR = weight_OI.to(dtype) @ a_RI.t()
    more_O = 2 * state.scaling * (cross_OR * b_OR).sum(1)
    more_O += state.scaling**2 * ((b_OR @ (a_RI @ a_RI.t())) * b_OR).sum(1)
    # In this form a delta of zero gives |w| itself, not the root of its square.
    grown_O = base_O * (1 + more_O / base_O.square()).clamp_min(0).sqrt()
    return torch.where(base_O > 0, grown_O, more_O.clamp_min(0).sqrt())
