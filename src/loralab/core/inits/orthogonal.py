"""``"orthogonal"``: both factors random, with B A = 0 because their ranks' directions are orthogonal.

The rows of a random orthogonal [R, R] matrix are split into two halves; A lives on one, B on the other.
"""

import torch

from loralab.core.inits import Start, no_option
from loralab.errors import ConfigError

check = no_option


def init(start: Start, option: str) -> None:
    """Fill both factors in place; B A is zero to rounding.

    Raises:
        ConfigError: the rank is odd.
    """
    rank = start.rank
    if rank % 2:
        raise ConfigError(f"init_lora_weights='orthogonal' halves the rank, so it must be even; r is {rank}.")
    basis_RR, _ = torch.linalg.qr(torch.randn(rank, rank))
    left_IH = torch.randn(start.a_RI.shape[1], rank // 2)
    right_HO = torch.randn(rank // 2, start.b_OR.shape[0])
    start.a_RI.copy_((left_IH @ basis_RR[0::2]).t() / 10)
    start.b_OR.copy_(right_HO.t() @ basis_RR[1::2] / 10)
