"""Variants of LoRA: one file each, the folder is the registry.

A layer knows shapes, a variant knows mathematics, always on [O, I] matrices. An entry has

* ``TENSORS``, the names of the tensors it keeps beside A and B, as they stand in PEFT's files;
* ``create(state)``, which returns their first values, in that order;
* ``term(state, base_out, low)``, what it adds to the base layer's output;
* ``delta(state)``, what it adds to the base weight, [O, I].

Both see the layer through a `State`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from loralab.core.registry import Registry

__all__ = ["REGISTRY", "Norms", "State", "find_variant"]

REGISTRY = Registry(__name__, list(__path__), "variant")


@dataclass
class Norms:
    """Norms that were computed before, and what they were computed from."""

    key: tuple[object, ...] | None = None
    sums: Tensor | None = None
    value_O: Tensor | None = None


@dataclass(frozen=True)
class State:
    """One adapter on one layer, as a variant sees it."""

    sources: tuple[Tensor, ...]
    """The parameters that hold the base weight as it was found, and the factors."""
    dense: Callable[[], Tensor]
    """Returns it as plain numbers, [O, I]; over a quantized base that is work."""
    a_RI: Tensor
    b_OR: Tensor
    scaling: float
    extra: dict[str, Tensor]
    """The variant's own tensors."""
    bias_O: Tensor | None
    per_output: Callable[[Tensor], Tensor]
    """Shapes a vector [O] so that it multiplies the layer's output."""
    norms: Norms | None = None
    """Where norms are kept while nothing changes; None where they are to be computed each time."""

    @property
    def weight_OI(self) -> Tensor:
        """The base weight as it was found."""
        return self.dense()


def find_variant(name: str) -> ModuleType:
    """Return the variant of that name. Raises ConfigError for an unknown one."""
    return REGISTRY.get(name)
