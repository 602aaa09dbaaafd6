"""PEFT's default, ``init_lora_weights=True``: A Kaiming-uniform with a = sqrt(5), B zero.

The bound is 1 / sqrt(I), that of `torch.nn.Linear`. An embedding's A is zero and its B normal, because A is
looked up there, not multiplied.
"""

import math

from torch import nn

from loralab.core.inits import Start, no_option

check = no_option


def init(start: Start, option: str) -> None:
    """Fill both factors in place; B A is zero, so a fresh adapter changes nothing."""
    if start.lookup:
        nn.init.zeros_(start.a_RI)
        nn.init.normal_(start.b_OR)
    else:
        nn.init.kaiming_uniform_(start.a_RI, a=math.sqrt(5))
        nn.init.zeros_(start.b_OR)
