"""Initialisations of the factors: one file each, the folder is the registry.

An entry has ``init(start, option)`` and ``check(option)``. `init` fills A and B in place and returns the base
weight that is to take the place of the old one (the entry then says ``CHANGES_BASE = True``), or None to
leave it. `option` is what follows the entry's name: "pissa_niter_4" is the entry "pissa" with the option
"niter_4". An entry that starts from data says in ``NEEDS`` which function gathers it, and one that cannot be
used on an embedding says ``LOOKUP = False``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

from loralab.core.algebra import product, wide
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
    quantized: bool = False
    """The base weight is kept in few bits; `weight_OI` is what they stand for."""

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return self.a_RI.shape[0]

    def of_data(self, statistics: Mapping[str, Any] | None, needs: str) -> Any:
        """Return what has been gathered for this module.

        Raises:
            ConfigError: nothing has, by the function `needs`.
        """
        if statistics is None or self.path not in statistics:
            raise ConfigError(
                f"init_lora_weights={self.config.init_lora_weights!r} knows nothing about {self.path!r}: "
                f"call {needs}(model, config, ...) with this config before the adapter is attached. Over a "
                "base that was saved with its changed weights, set init_lora_weights to True."
            )
        return statistics[self.path]

    def wide_weight(self) -> Tensor:
        """Return the base weight, [O, I], in fp32 or wider."""
        return self.weight_OI.to(wide(self.weight_OI.dtype))

    def fill(self, a_RI: Tensor, b_OR: Tensor) -> None:
        """Copy the factors.

        Raises:
            ConfigError: they have not the adapter's shapes.
        """
        for name, given, own in (("A", a_RI, self.a_RI), ("B", b_OR, self.b_OR)):
            if given.shape != own.shape:
                raise ConfigError(
                    f"{self.path!r}: init_lora_weights={self.config.init_lora_weights!r} gives {name} as "
                    f"{list(given.shape)}, the adapter needs {list(own.shape)}. The rank must be at most the "
                    "smaller side of the weight, a convolution must have groups=1, and data must have been "
                    "gathered for this rank."
                )
            own.copy_(given)

    def lead(self, a_KI: Tensor, b_OK: Tensor) -> None:
        """Copy factors that may have fewer directions than the rank; for the others B is 0."""
        count = min(self.rank, a_KI.shape[0])
        self.b_OR.zero_()
        self.a_RI[:count].copy_(a_KI[:count])
        self.b_OR[:, :count].copy_(b_OK[:, :count])

    def residual(self) -> Tensor:
        """Return W - scaling * B A, [O, I], in fp32 or wider, so that the sum is W as before."""
        weight_OI = self.wide_weight()
        return weight_OI - product(self.a_RI.to(weight_OI), self.b_OR.to(weight_OI), self.scaling)


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
