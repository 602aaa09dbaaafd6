"""Initialisations of the factors: one file each, the folder is the registry.

An entry has one function, ``init(a_RI, b_OR, lookup)``, which fills both factors in place. `lookup` says
that the layer is an embedding: its input is an index, so A is a table with one column a word.
"""

from collections.abc import Callable

from torch import Tensor

from loralab.core.registry import Registry

REGISTRY = Registry(__name__, list(__path__), "init_lora_weights")

Init = Callable[[Tensor, Tensor, bool], None]


def find_init(value: bool | str) -> Init:
    """Return the `init` function that `init_lora_weights` names (True is "kaiming", False is "random").

    Raises:
        ConfigError: no initialisation of that name.
    """
    if isinstance(value, bool):
        value = "kaiming" if value else "random"
    init: Init = REGISTRY.get(value.lower()).init
    return init
