"""Simulated quantization: a weight rounded to few levels and back. Shape key: I in, O out, N blocks."""

import torch
from torch import Tensor

__all__ = ["normal_float", "quantized"]

_BLOCK = 64
"""As many numbers share a scale, as in bitsandbytes."""
_TAIL = 0.9677083
"""The quantile of a normal variable that is the outermost level (bitsandbytes)."""


def normal_float(bits: int) -> Tensor:
    """Return the 2^bits levels of NormalFloat from -1 to 1, in float64.

    They lie at evenly spaced quantiles of a normal distribution, each half with its own spacing so that zero
    is a level (Dettmers et al. 2023, arXiv 2305.14314, section 3 and appendix E).
    """
    half = 2 ** (bits - 1)
    above = torch.special.ndtri(torch.linspace(_TAIL, 0.5, half + 1, dtype=torch.float64))[:-1]
    below = -torch.special.ndtri(torch.linspace(_TAIL, 0.5, half, dtype=torch.float64))[:-1]
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above.flip(0)])
    return levels / levels.abs().max()


def quantized(weight_OI: Tensor, bits: int) -> Tensor:
    """Return the weight as it is after quantization to `bits` and back, [O, I], in its own dtype.

    2 and 4 bits: NormalFloat, every 64 numbers in a row divided by the largest of them. 8 bits: whole numbers
    up to 127, every row divided by its largest (Dettmers et al. 2022, arXiv 2208.07339, section 3).
    """
    if bits == 8:
        largest_O1 = _largest(weight_OI)
        return (weight_OI * (127 / largest_O1)).round() * (largest_O1 / 127)
    levels = normal_float(bits).to(weight_OI)
    flat = weight_OI.flatten()
    padded_NB = torch.nn.functional.pad(flat, (0, -flat.numel() % _BLOCK)).view(-1, _BLOCK)
    largest_N1 = _largest(padded_NB)
    middles = (levels[1:] + levels[:-1]) / 2
    nearest_NB = torch.bucketize(padded_NB / largest_N1, middles, out_int32=True)
    return (levels[nearest_NB] * largest_N1).flatten()[: flat.numel()].view(weight_OI.shape)


def _largest(rows: Tensor) -> Tensor:
    """Return the largest absolute value of every row, as a column; 1 for a row of zeros."""
    largest = rows.abs().amax(1, keepdim=True)
    return largest.masked_fill(largest == 0, 1.0)
