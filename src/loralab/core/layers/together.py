"""Linear layers that read the same input one behind the other, whose products are made in one go."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from loralab.core.function import Base, Segment, lora_linears

__all__ = ["Member", "Together", "find_together"]

_NAMES = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)
"""The names under which models keep layers that read the same input."""


class Member(Protocol):
    """A layer that can say what it computes."""

    def bases(self) -> Base:
        """Return its weight, [O, I], and bias."""

    def segments(self) -> list[Segment] | None:
        """Return what it adds now; None: it cannot be computed as one function."""

    def stamp(self) -> Hashable:
        """Return what changes with whatever changes its output."""


class Together:
    """The layers of one input: the first to be called computes for all, the others find their output here.

    An output is handed out for the very input, adapters and weights that it was computed with, so a model
    that calls the layers in another way gets what it asks for; it is only slower, until this is given up.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        self.__setstate__(tuple(layers))

    def __getstate__(self) -> tuple[Any, ...]:
        """A copy begins anew: what waits here is of one computation."""
        return self.layers

    def __setstate__(self, layers: tuple[Any, ...]) -> None:
        self.layers = layers
        self._input: Tensor | None = None
        self._version = 0
        self._waiting: dict[int, tuple[Tensor, Hashable]] = {}
        self._wasted = 0

    def waiting(self, layer: Member, x: Tensor) -> Tensor | None:
        """Return a layer's output for this x that was computed along with another's, if there is one."""
        if self._input is x and self._version == x._version:
            found = self._waiting.pop(id(layer), None)
            if not self._waiting:
                self._input = None
            if found is not None and found[1] == layer.stamp():
                return found[0]
        return None

    def output(self, layer: Member, x: Tensor, segments: list[Segment]) -> Tensor | None:
        """Compute for all and return the output of one, which adds `segments`; None: it goes alone."""
        if self._waiting:
            self._input, self._waiting = None, {}
            self._wasted += 1
        # Without gradients there is nothing to gain; but what drops has to draw as it will with them, where
        # reentrant checkpointing makes the same pass again.
        gains = torch.is_grad_enabled() or any(segment.dropout for segment in segments)
        if not gains or self._wasted > 2 or torch.compiler.is_compiling():
            return None
        combined = _combined([segments if one is layer else one.segments() for one in self.layers])
        if combined is None:
            return None
        outputs = lora_linears(x, [one.bases() for one in self.layers], combined)
        own = next(out for one, out in zip(self.layers, outputs, strict=True) if one is layer)
        self._waiting = {
            id(one): (out, one.stamp())
            for one, out in zip(self.layers, outputs, strict=True)
            if one is not layer
        }
        self._input, self._version = x, x._version
        return own


def find_together(layers: Mapping[str, Member]) -> list[Together]:
    """Return the groups among the layers, which are given by path, that have at least two."""
    found = []
    for names in _NAMES:
        groups: dict[str, list[Any]] = defaultdict(list)
        for path, layer in layers.items():
            parent, _, name = path.rpartition(".")
            if name in names:
                groups[parent].append(layer)
        for group in groups.values():
            if len(group) > 1 and len({getattr(layer, "in_features", None) for layer in group}) == 1:
                found.append(Together(group))
    return found


def _combined(each: list[list[Segment] | None]) -> list[Segment] | None:
    """Return segments with the factors of all layers; None where the layers have not the same ones."""
    shapes = [None if own is None else [(s.tokens, s.dropout, len(s.factors)) for s in own] for own in each]
    known = [own for own in each if own is not None]
    if len(known) < len(each) or any(shape != shapes[0] for shape in shapes):
        return None
    return [
        Segment(tuple(f for part in parts for f in part.factors), parts[0].dropout, parts[0].tokens)
        for parts in zip(*known, strict=True)
    ]
