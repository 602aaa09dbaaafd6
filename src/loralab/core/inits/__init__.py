"""Initialisations of the factors: one file each, the folder is the registry.

An entry has ``init(start, option)`` and ``check(option)``. `init` fills A and B in place and returns the base
weight that is to take the place of the old one (the entry then says ``CHANGES_BASE = True``), or None to
leave it. `option` is what follows the entry's name: "pissa_niter_4" is the entry "pissa" with the option
"niter_4".
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType

from torch import Tensor

from loralab.core.config import LoraConfig
from loralab.core.registry import Registry
from loralab.errors import ConfigError, did_you_mean

__all__ = ["REGISTRY", "Start", "changes_base", "find_init"]

REGISTRY = Registry(__name__, list(__path__), "init_lora_weights")


@dataclass(frozen=True)
class Start:
    """What an initialisation has to work with, as matrices. A convolution's kernel is flattened into I."""

    a_RI: Tensor
    """To be filled in place."""
    b_OR: Tensor
    """To be filled in place; [O, R / groups] over a grouped convolution."""
    weight_OI: Tensor
    """The base weight."""
    scaling: float
    path: str
    """Where the module stands in the model."""
    config: LoraConfig
    """The adapter's settings, for those that belong to one initialisation."""
    lookup: bool
    """The layer is an embedding: its input is an index, so A is a table with one column a word."""

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return self.a_RI.shape[0]


def find_init(value: bool | str) -> Callable[[Start], Tensor | None]:
    """Return the initialisation that `init_lora_weights` names (True is "kaiming", False is "random").

    Raises:
        ConfigError: no initialisation of that name, or no such option of it.
    """
    entry, option = _entry(value)
    entry.check(option)
    return partial(entry.init, option=option)


def changes_base(value: bool | str) -> bool:
    """Return whether the initialisation gives the base another weight. Raises as `find_init`."""
    return bool(getattr(_entry(value)[0], "CHANGES_BASE", False))


def _entry(value: bool | str) -> tuple[ModuleType, str]:
    if isinstance(value, bool):
        value = "kaiming" if value else "random"
    word = value.lower()
    name = next((n for n in REGISTRY.names if word == n or word.startswith(f"{n}_")), None)
    if name is None:
        raise ConfigError(
            f"unknown init_lora_weights {value!r}; known are True, False, {', '.join(REGISTRY.names)}."
            + did_you_mean(word, REGISTRY.names)
        )
    return REGISTRY.get(name), word.removeprefix(name).removeprefix("_")


def no_option(option: str) -> None:
    """Raise ConfigError if an entry that takes no option is given one."""
    if option:
        raise ConfigError(
            f"init_lora_weights: {option!r} is no option of this initialisation; it takes none."
        )
