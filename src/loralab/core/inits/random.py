"""``init_lora_weights=False``: both factors random, for tests; such an adapter changes the model at once."""

from loralab.core.inits import Start, no_option

check = no_option


def init(start: Start, option: str) -> None:
    """Leave both factors as torch made them: uniform as in its own layers, for an embedding normal.

    Drawing again would be as random, but not what PEFT gets from the same seed.
    """
