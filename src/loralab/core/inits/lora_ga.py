"""``"lora_ga"``: factors whose first step follows the full gradient (Wang et al. 2024, arXiv 2407.05000).

Of the 2 r leading singular directions of the weight's gradient, r go to A and r to B (their theorem 3.1), and
the base gives up scaling * B A, so the sum is W as before. As in PEFT, B carries the singular values too.

`scale` multiplies: "stable" B by O^(1/4) / sqrt(gamma) (their theorem 3.2); "weight_svd" B, so that its first
direction is as long as W's; "gd_scale" A and B by 1 / scaling; "unit" nothing.
"""

import torch
from torch import Tensor

from loralab.core.init_config import LoraGAConfig
from loralab.core.inits import Start, no_option
from loralab.core.svd import LowRank, randomized_svd
from loralab.errors import ConfigError

CHANGES_BASE = True
NEEDS = "preprocess_loraga"
check = no_option


def init(start: Start, option: str) -> Tensor:
    """Fill both factors and return the residual base weight W - scaling * B A, [O, I], in fp32 or wider.

    Raises:
        ConfigError: `preprocess_loraga` has not been called, or for another module or rank.
    """
    settings = start.config.lora_ga_config
    settings = settings if isinstance(settings, LoraGAConfig) else LoraGAConfig()
    gradient: LowRank = start.of_data(settings.statistics, NEEDS)
    if gradient.rank < 2 * start.rank:
        raise ConfigError(
            f"{start.path!r}: init_lora_weights='lora_ga' needs 2 * r = {2 * start.rank} directions of the "
            f"gradient and there are {gradient.rank}. The smaller side of the weight must be at least 2 * r; "
            "if r is larger than it was in preprocess_loraga, call that again."
        )
    for_a, for_b = _directions(settings.direction, start.rank)
    a_RI = gradient.v_RI[for_a]
    b_OR = gradient.u_OR[:, for_b] * gradient.s_R[for_b]
    if settings.scale == "stable":
        b_OR = b_OR * (b_OR.shape[0] ** 0.25 / settings.stable_gamma**0.5)
    elif settings.scale == "weight_svd":
        largest = randomized_svd(start.weight_OI, 1).s_R[0].to(b_OR)
        first = gradient.s_R[for_b][0]
        b_OR = b_OR * (largest / first) if first > 0 else b_OR
    elif settings.scale == "gd_scale":
        a_RI, b_OR = a_RI / start.scaling, b_OR / start.scaling
    start.fill(a_RI, b_OR)
    return start.residual()


def _directions(direction: str, rank: int) -> tuple[Tensor, Tensor]:
    """Return which directions A takes and which B, counted from the largest."""
    all_2R = torch.arange(2 * rank)
    if direction == "random":
        chosen = torch.randperm(2 * rank)[:rank]
        return chosen, chosen
    if direction == "ArBr":
        return all_2R[1::2], all_2R[::2]
    first, second = all_2R[:rank], all_2R[rank:]
    return (second, first) if direction == "A2rBr" else (first, second)
