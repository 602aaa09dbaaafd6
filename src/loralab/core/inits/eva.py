"""``"eva"``: A from the principal directions of the layer's input (Paischer et al. 2024, arXiv 2410.07170).

They are not known when the adapter is made: until `initialize_lora_eva_weights` has seen data, A is
Kaiming-uniform. B is zero before and after.
"""

from loralab.core.inits import Start, kaiming, no_option
from loralab.errors import ConfigError

LOOKUP = False
check = no_option


def init(start: Start, option: str) -> None:
    """Fill both factors in place; B A is zero, so a fresh adapter changes nothing.

    Raises:
        ConfigError: the layer is an embedding, whose input is no vector.
    """
    if start.lookup:
        raise ConfigError(
            f"{start.path!r}: init_lora_weights='eva' needs inputs that are vectors, and an embedding's are "
            "indices; exclude the module, or give it an adapter of its own."
        )
    kaiming.init(start, option)
