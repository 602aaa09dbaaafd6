"""``init_lora_weights=False``: both factors random, for tests; such an adapter changes the model at once."""

from torch import Tensor


def init(a_RI: Tensor, b_OR: Tensor, lookup: bool) -> None:
    """Leave both factors as torch made them: uniform as in its own layers, for an embedding normal.

    Drawing again would be as random, but not what PEFT gets from the same seed.
    """
