"""``init_lora_weights=False``: both factors random, for tests; such an adapter changes the model at once."""

import math

from torch import nn

from loralab.core.inits import Start, no_option

check = no_option


def init(start: Start, option: str) -> None:
    """Fill both factors in place: uniform as in `torch.nn.Linear`, for an embedding normal."""
    for factor in (start.a_RI, start.b_OR):
        if start.lookup:
            nn.init.normal_(factor)
        else:
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
