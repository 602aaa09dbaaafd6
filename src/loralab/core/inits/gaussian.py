"""``init_lora_weights="gaussian"``: A normal with deviation 1/r, B zero (arXiv 2106.09685, section 4.1)."""

from torch import nn

from loralab.core.inits import Start, no_option

check = no_option


def init(start: Start, option: str) -> None:
    """Fill both factors in place; B A is zero, so a fresh adapter changes nothing."""
    if start.lookup:
        nn.init.zeros_(start.a_RI)
        nn.init.normal_(start.b_OR)
    else:
        nn.init.normal_(start.a_RI, std=1 / start.rank)
        nn.init.zeros_(start.b_OR)
