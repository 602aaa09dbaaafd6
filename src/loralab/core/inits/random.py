"""``init_lora_weights=False``: both factors random, for tests; such an adapter changes the model at once."""

import math

from torch import Tensor, nn


def init(a_RI: Tensor, b_OR: Tensor, lookup: bool) -> None:
    """Fill both factors in place: uniform as in `torch.nn.Linear`, for an embedding normal."""
    for factor in (a_RI, b_OR):
        if lookup:
            nn.init.normal_(factor)
        else:
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
