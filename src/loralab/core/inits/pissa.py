"""``"pissa"``: train the principal singular directions (Meng et al. 2024, arXiv 2404.02948).

A and B take the r largest singular values of W, and the base keeps the rest, so the sum is W as before.
"pissa_niter_4" finds them by randomized subspace iteration, in a fraction of the time.
"""

import re

import torch
from torch import Tensor

from loralab.core.inits import Start
from loralab.errors import ConfigError

CHANGES_BASE = True


def check(option: str) -> None:
    """Take no option, or "niter_N"."""
    if option and not re.fullmatch(r"niter_\d+", option):
        raise ConfigError(f"init_lora_weights: expected 'pissa' or 'pissa_niter_N', not 'pissa_{option}'.")


def init(start: Start, option: str) -> Tensor:
    """Fill both factors and return the residual base weight W - scaling * B A, [O, I], in fp32."""
    weight_OI = start.weight_OI.to(torch.float32)
    if option:
        # A seed of its own: who loads the adapter has to find the same residual again.
        with torch.random.fork_rng(devices=[weight_OI.device] if weight_OI.is_cuda else []):
            torch.manual_seed(0)
            niter = int(option.removeprefix("niter_"))
            rank = min(start.rank, *weight_OI.shape)
            u_OK, s_K, v_IK = torch.svd_lowrank(weight_OI, rank, niter=niter)
        vh_KI = v_IK.t()
    else:
        u_OK, s_K, vh_KI = torch.linalg.svd(weight_OI, full_matrices=False)
    root_K = (s_K / start.scaling).sqrt()
    start.lead(root_K[:, None] * vh_KI, u_OK * root_K)
    return start.residual()
