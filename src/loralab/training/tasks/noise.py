"""Noise on a model's embeddings in training.

Shape key: B rows, T tokens of a row, I width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["noisy_embeddings"]


@contextmanager
def noisy_embeddings(model: Any, alpha: float, documents_BT: Tensor) -> Iterator[None]:
    """Within the block each embedding has uniform noise of up to alpha / sqrt(L I) added to it.

    L is the length of the token's own document, however the documents are packed (NEFTune, Jain et al. 2023,
    arXiv 2310.05914, algorithm 1).
    """
    lengths_BT = torch.stack([_lengths(row_T) for row_T in documents_BT])

    def add_noise(module: Any, inputs: Any, output_BTI: Tensor) -> Tensor:
        reach_BT1 = (alpha / (lengths_BT * output_BTI.shape[-1]).sqrt())[..., None]
        return output_BTI + torch.empty_like(output_BTI).uniform_(-1, 1) * reach_BT1.to(output_BTI.dtype)

    handle = model.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()


def _lengths(documents_T: Tensor) -> Tensor:
    """Return for each token how many tokens its document has; padding counts as one."""
    numbers_T = documents_T + 1
    return torch.bincount(numbers_T)[numbers_T]
