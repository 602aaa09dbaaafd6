"""LoRA as in the paper: W + scaling * B A (Hu et al. 2021, arXiv 2106.09685)."""

from torch import Tensor

from loralab.core.algebra import product
from loralab.core.variants import State

TENSORS: tuple[str, ...] = ()


def create(state: State) -> tuple[Tensor, ...]:
    """Nothing is kept beside A and B."""
    return ()


def term(state: State, base_out: Tensor, low: Tensor) -> Tensor:
    """Return scaling * B A x, which is `low`."""
    return low


def delta(state: State) -> Tensor:
    """Return scaling * B A, [O, I]."""
    return product(state.a_RI, state.b_OR, state.scaling)
