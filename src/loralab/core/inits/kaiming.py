"""PEFT's default, ``init_lora_weights=True``: A Kaiming-uniform with a = sqrt(5), B zero.

The bound is 1 / sqrt(I), that of `torch.nn.Linear`. An embedding's A is zero and its B normal, because A is
looked up there, not multiplied.
"""

import math

from torch import Tensor, nn


def init(a_RI: Tensor, b_OR: Tensor, lookup: bool) -> None:
    """Fill both factors in place; B A is zero, so a fresh adapter changes nothing."""
    if lookup:
        nn.init.zeros_(a_RI)
        nn.init.normal_(b_OR)
    else:
        nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5))
        nn.init.zeros_(b_OR)
