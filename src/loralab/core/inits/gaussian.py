"""``init_lora_weights="gaussian"``: A normal with deviation 1/r, B zero (arXiv 2106.09685, section 4.1)."""

from torch import Tensor, nn


def init(a_RI: Tensor, b_OR: Tensor, lookup: bool) -> None:
    """Fill both factors in place; B A is zero, so a fresh adapter changes nothing."""
    if lookup:
        nn.init.zeros_(a_RI)
        nn.init.normal_(b_OR)
    else:
        nn.init.normal_(a_RI, std=1 / a_RI.shape[0])
        nn.init.zeros_(b_OR)
