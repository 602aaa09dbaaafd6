"""``"corda"``: split W by how the data uses it (Yang et al. 2024, arXiv 2406.05223).

With C the covariance of the layer's input, the SVD of W C = U S V gives W = U S (V C^-1): directions in the
order in which the data needs them. "ipm" trains the first r, "kpm" the last r, and the base keeps the others,
so the sum is W as before.
"""

import math

import torch
from torch import Tensor

from loralab.core.init_config import CordaConfig
from loralab.core.inits import Start, no_option
from loralab.core.svd import LowRank, exact_svd
from loralab.errors import ConfigError

CHANGES_BASE = True
LOOKUP = False
NEEDS = "preprocess_corda"
check = no_option

_DAMPING = 0.01
_INVERTIBLE = 0.05


def init(start: Start, option: str) -> Tensor:
    """Fill both factors and return the residual base weight W - scaling * B A, [O, I], in fp32 or wider.

    Raises:
        ConfigError: `preprocess_corda` has not been called, or for another module or rank.
    """
    if start.lookup:
        raise ConfigError(
            f"{start.path!r}: init_lora_weights='corda' is for linear layers, not for an embedding; exclude "
            "the module, or give it an adapter of its own."
        )
    settings = start.config.corda_config
    known = settings.statistics if isinstance(settings, CordaConfig) else None
    a_RI, b_OR = start.of_data(known, NEEDS)
    root = math.sqrt(start.scaling)
    start.fill(a_RI / root, b_OR / root)
    return start.residual()


def decompose(weight_OI: Tensor, covariance_II: Tensor, rank: int, method: str) -> tuple[Tensor, Tensor]:
    """Return (a_RI, b_OR), whose product is what the adapter takes out of W, in fp32 or wider.

    C has a share of its mean diagonal added to it, doubled until its inverse is one.

    Raises:
        ConfigError: the rank exceeds the smaller side of the weight, or the numbers are not finite.
    """
    if rank > min(weight_OI.shape):
        raise ConfigError(f"rank {rank} exceeds the smaller side of a weight of {list(weight_OI.shape)}.")
    damped_II, inverse_II = _inverted(covariance_II.to(weight_OI))
    whole = exact_svd(weight_OI @ damped_II)
    kept = slice(rank) if method == "ipm" else slice(whole.rank - rank, None)
    v_RI = whole.v_RI[kept] @ inverse_II
    return LowRank(whole.u_OR[:, kept], whole.s_R[kept], v_RI).factors()


def _inverted(covariance_II: Tensor) -> tuple[Tensor, Tensor]:
    eye_II = torch.eye(covariance_II.shape[0], dtype=covariance_II.dtype, device=covariance_II.device)
    mean = covariance_II.diagonal().mean()
    if not torch.isfinite(covariance_II).all() or mean <= 0:
        raise ConfigError("the inputs that run_model gives are all zero, or not finite.")
    damping = _DAMPING
    while True:
        damped_II = covariance_II + eye_II * (mean * damping)
        inverse_II = torch.linalg.inv(damped_II)
        if torch.dist(damped_II @ inverse_II, eye_II) < _INVERTIBLE:
            return damped_II, inverse_II
        damping *= 2
