"""``"loftq"``: a quantized base and factors that make up for the rounding (Li et al. 2023, arXiv 2310.08659).

Their algorithm 1 takes turns: quantize what the factors leave of W, then fit the factors to the error of
that. The objective is their equation 6, the Frobenius norm of W - Q - scaling * B A; the best turn is kept,
so more of them are never worse.
"""

import math

from torch import Tensor

from loralab.core.init_config import LoftQConfig
from loralab.core.inits import Start, no_option
from loralab.core.quantize import quantized
from loralab.core.svd import LowRank, exact_svd
from loralab.errors import ConfigError

CHANGES_BASE = True
check = no_option


def init(start: Start, option: str) -> Tensor:
    """Fill both factors and return the quantized base weight as plain numbers, [O, I], in fp32 or wider.

    Raises:
        ConfigError: the rank exceeds the smaller side of the weight, or that is quantized already.
    """
    if start.quantized:
        raise ConfigError(
            f"{start.path!r} is quantized already, so 'loftq' cannot see what the rounding took: load the "
            "base in full, or attach with init_lora_weights=True and call replace_lora_weights_loftq(model)."
        )
    settings = start.config.loftq_config
    settings = settings if isinstance(settings, LoftQConfig) else LoftQConfig()
    q_OI, low = decompose(start.wide_weight(), start.rank, settings.loftq_bits, settings.loftq_iter)
    a_RI, b_OR = low.factors()
    root = math.sqrt(start.scaling)
    start.fill(a_RI / root, b_OR / root)
    return q_OI


def decompose(weight_OI: Tensor, rank: int, bits: int, turns: int) -> tuple[Tensor, LowRank]:
    """Return (Q, low) with W near to Q + low.product(), where Q is W quantized; `low.lost` is the error."""
    best_OI, best = _turn(weight_OI, weight_OI, rank, bits)
    low = best
    for _ in range(turns - 1):
        q_OI, low = _turn(weight_OI, weight_OI - low.product(), rank, bits)
        if low.lost < best.lost:
            best_OI, best = q_OI, low
    return best_OI, best


def _turn(weight_OI: Tensor, rest_OI: Tensor, rank: int, bits: int) -> tuple[Tensor, LowRank]:
    q_OI = quantized(rest_OI, bits)
    return q_OI, exact_svd(weight_OI - q_OI).cut(rank)
