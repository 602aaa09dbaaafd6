"""What a step runs with: the base, one adapter merged into it, or adapters beside it."""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import torch

from loralab.core.batched import Choice, calibrate
from loralab.errors import AdapterError
from loralab.serving.merged import Merged
from loralab.serving.mixed import Mixed, Run
from loralab.serving.places import Fitted, Places

__all__ = ["Merging", "Placement"]

Merging = Literal["auto", "never"]
"""Whether an adapter that is alone is merged."""

_PATIENCE = 4
"""An adapter is merged once it was alone for so many steps."""

Told = Callable[[str, str, str, float], None]
"""Gets (the identity before, that after, the mode, seconds) of a switch."""


class Placement:
    """Switches a model between its base and adapters; used from one thread, that of the steps."""

    def __init__(self, places: Places, slots: int, merging: Merging = "auto", keep: int = 1) -> None:
        parameter = next(iter(places.parameters.values()))
        dtype = getattr(places.model, "dtype", parameter.dtype)
        finder = getattr(places.model, "get_output_embeddings", None)
        head = finder() if callable(finder) else None
        self.mixed = Mixed(places, dtype, parameter.device, head)
        self.merged = Merged(places, keep)
        self.told: Told = lambda before, after, mode, seconds: None
        self.mode = "base"
        self.places, self._slots, self._merging = places, slots, merging
        self._unmergeable: set[str] = set()
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._alone = ("", 0)
        self._together: tuple[frozenset[str], int] = (frozenset(), 0)
        self._shape = (dtype, parameter.device)

    def calibrate(self, rank: int = 16) -> Choice:
        """Measure which kernel is the fastest on this machine for a layer of this model, and use it."""
        layers = [p for p in self.places.by_path.values() if not p.embeds and p.outputs < 8 * p.inputs]
        if layers:
            middle = sorted(layers, key=lambda p: p.inputs * p.outputs)[len(layers) // 2]
            with torch.no_grad():
                self.mixed.choice = calibrate(middle.inputs, middle.outputs, rank, self._slots, *self._shape)
        return self.mixed.choice

    def enter(self, runs: Sequence[Run], last: Sequence[Run] | None, present: Collection[str]) -> str:
        """Make ready for a step over tokens that run with `runs`, and return the mode: base, merged or mixed.

        `last` are the tokens that the model's head sees, where it sees only some. `present` are the
        identities of all requests that run or wait: one adapter that is alone among them is merged, after a
        few steps.

        Raises:
            AdapterError: an adapter that must be merged cannot be; nothing is shown then but the base.
        """
        adapters = {fitted.identity: fitted for fitted, _ in runs if fitted is not None}
        only = next(iter(adapters.values())) if len(adapters) == 1 else None
        if not adapters:
            return self._be("base", "")
        if only is not None and self._merges(only, [fitted for fitted, _ in runs], present):
            return self._be("merged", only.identity)
        for identity, fitted in adapters.items():
            self._seat(identity, fitted, adapters.keys())
        mode = self._be("mixed", "")
        self._tidy(frozenset(adapters))
        self.mixed.enter(runs, last)
        return mode

    def where(self, identity: str) -> Literal["ram", "slot", "merged"]:
        """Return where an adapter that is in memory is besides."""
        if identity in self.merged.built():
            return "merged"
        return "slot" if identity in self.mixed.seats else "ram"

    def forget(self, identity: str) -> None:
        """Drop what is held of an adapter; no step may use it any more."""
        self.merged.forget(identity)
        if identity in self.mixed.seats:
            self.mixed.unseat(identity)
        self._recent.pop(identity, None)
        self._unmergeable.discard(identity)

    def leave(self) -> None:
        """Show the base as it was found."""
        self._be("base", "")

    def _merges(self, only: Fitted, runs: Sequence[Fitted | None], present: Collection[str]) -> bool:
        if not only.mixable:
            self.merged.build(only)
            return True
        if self._merging == "never" or None in runs or set(present) != {only.identity}:
            self._alone = ("", 0)
            return False
        before, steps = self._alone
        self._alone = (only.identity, steps + 1 if before == only.identity else 1)
        if only.identity in self.merged.built():
            return True
        return self._alone[1] > _PATIENCE and self._builds(only)

    def _builds(self, only: Fitted) -> bool:
        """Compute merged weights, and return whether there are any; one that cannot be merged runs beside."""
        if only.identity in self._unmergeable or not self.merged.can(only):
            return False
        try:
            self.merged.build(only)
        except AdapterError:
            self._unmergeable.add(only.identity)
            return False
        return True

    def _tidy(self, identities: frozenset[str]) -> None:
        """Bring adapters that have run together for a while, and lie scattered, to neighbouring slots."""
        before, steps = self._together
        self._together = (identities, steps + 1 if before == identities else 1)
        if steps == _PATIENCE and before == identities and self.mixed.is_scattered(identities):
            self.mixed.gather(identities)

    def _seat(self, identity: str, fitted: Fitted, needed: Collection[str]) -> None:
        if identity not in self.mixed.seats:
            while len(self.mixed.seats) >= self._slots:
                self.mixed.unseat(oldest := next(name for name in self._recent if name not in needed))
                del self._recent[oldest]
            began = time.perf_counter()
            self.mixed.seat(fitted)
            self.told("", identity, "mixed", time.perf_counter() - began)
        self._recent[identity] = None
        self._recent.move_to_end(identity)

    def _be(self, mode: str, identity: str) -> str:
        self.mixed.leave()
        before = self.merged.shown
        if before != identity:
            self.told(before, identity, "merged", self.merged.show(identity))
        self.mode = mode
        return mode
