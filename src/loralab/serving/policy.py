"""Who goes next: fair between tenants and between adapters, with a bound on waiting.

Each tenant and each adapter has a counter of what was done for it, as in a fair queue (Sheng et al. 2024,
arXiv 2401.00588): a prompt's token counts 1, a written one 2, divided by the tenant's weight. Of those who
wait, who has had least goes first. One who comes back after a pause begins at the least counter of those who
are there, so that nobody saves up. Whoever waited longer than `max_wait` goes before all others, and if every
seat is taken the adapter that will be done first takes no new requests until its seat is free.

Needs no torch.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

__all__ = ["Fairness", "Waiter"]

_PROMPT, _WRITTEN = 1.0, 2.0
W = TypeVar("W", bound="Waiter")


class Waiter(Protocol):
    """A request, as far as the policy looks at it."""

    @property
    def submitted(self) -> float:
        """When it came, in seconds."""

    @property
    def identity(self) -> str:
        """What it runs with, "" for the base."""

    @property
    def tenant(self) -> str:
        """Who asks."""

    @property
    def alone(self) -> bool:
        """Whether it cannot run beside other adapters."""

    @property
    def left(self) -> int:
        """How many tokens it may still write."""


@dataclass
class Fairness:
    """The order in which requests are let in."""

    slots: int
    """How many adapters may run at a time."""
    max_wait: float = 3.0
    """Seconds."""
    weights: dict[str, float] = field(default_factory=dict)
    """By tenant; 1 where none is given."""
    _tenants: dict[str, float] = field(default_factory=dict)
    _adapters: dict[str, float] = field(default_factory=dict)

    def count(self, waiter: Waiter, prompt: int = 0, written: int = 0) -> None:
        """Note what was done for a request."""
        cost = _PROMPT * prompt + _WRITTEN * written
        self._tenants[waiter.tenant] += cost / self.weights.get(waiter.tenant, 1.0)
        self._adapters[waiter.identity] += cost

    def admit(self, waiting: Sequence[W], running: Sequence[W], now: float | None = None) -> list[W]:
        """Return those of `waiting` that may begin now, in order; which of them fit is not asked here."""
        now = time.perf_counter() if now is None else now
        present = (*waiting, *running)
        self._join(self._tenants, {waiter.tenant for waiter in present})
        self._join(self._adapters, {waiter.identity for waiter in present})
        late = [waiter for waiter in waiting if now - waiter.submitted > self.max_wait]
        late.sort(key=lambda waiter: waiter.submitted)
        passed = set(map(id, late))
        order = [*late, *sorted((w for w in waiting if id(w) not in passed), key=self._rank)]
        seated = {waiter.identity for waiter in running if waiter.identity}
        closed = self._closed(late, running, seated)
        admitted: list[W] = []
        alone = next((waiter.identity for waiter in running if waiter.alone), None)
        for waiter in order:
            if alone is None and waiter.alone:
                if running or admitted:
                    if waiter in late:
                        break  # it gets the engine for itself as soon as the others are done
                    continue
                alone = waiter.identity
            if alone is not None and waiter.identity != alone:
                if late and late[0] is waiter:
                    return []
                continue
            if waiter.identity and waiter.identity not in seated:
                if len(seated) >= self.slots:
                    continue
                seated.add(waiter.identity)
            elif waiter.identity in closed:
                continue
            admitted.append(waiter)
        return admitted

    def _closed(self, late: Sequence[Waiter], running: Sequence[Waiter], seated: Collection[str]) -> set[str]:
        """Return the adapter that takes no new requests because somebody waits too long for a seat."""
        waits = next((w for w in late if w.identity and w.identity not in seated), None)
        if waits is None or len(seated) < self.slots:
            return set()
        left: dict[str, int] = {}
        for waiter in running:
            if waiter.identity:
                left[waiter.identity] = max(left.get(waiter.identity, 0), waiter.left)
        return {min(left, key=left.__getitem__)}

    def _rank(self, waiter: Waiter) -> tuple[float, float, float]:
        return self._tenants[waiter.tenant], self._adapters[waiter.identity], waiter.submitted

    @staticmethod
    def _join(counters: dict[str, float], present: set[str]) -> None:
        """Forget who left, and let who came begin where the least of those who stayed is."""
        for gone in counters.keys() - present:
            del counters[gone]
        least = min(counters.values(), default=0.0)
        for new in present - counters.keys():
            counters[new] = least
