"""PEFT's names of a LoKr layer, which no model here has."""

from loralab.peft.others import (
    LoKrLayer,
    factorization,
)

__all__ = [
    "LoKrLayer",
    "factorization",
]
