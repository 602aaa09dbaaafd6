"""Mixed placement: every token of a batch runs with its own adapter, beside the untouched base.

A hook on each adapted module adds to the module's output; the model's modules and weights stay as they are.
Adapters of about one rank sit side by side in the slots of a table, see `loralab.core.batched`.

Shape key: T tokens, I in, O out, R rank, S slots.
"""

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loralab.core.batched import UNMEASURED, Choice, Kernel, Rows
from loralab.serving.places import Fitted, Part, Place, Places

__all__ = ["Mixed"]

_BUCKETS = (8, 16, 32, 64, 128, 256, 512)
"""An adapter sits among those whose rank is rounded up to the same of these."""
_FIRST_SLOTS = 4
_WIDE = 8
"""A layer with so many times more outputs than inputs is a head: its few tokens go adapter by adapter."""

Run = tuple[Fitted | None, int]
"""Tokens that follow each other, and what they run with."""


@dataclass(eq=False)
class Seat:
    """Where an adapter sits, and what of it lies in no table."""

    fitted: Fitted
    bucket: int
    slot: int
    own: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By path: A and scaling * B, transposed: [I, R] and [R, O]."""
    gains: dict[str, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)
    """By path: what multiplies and what is added to the outputs, [O]."""


class _Table:
    """Adapters of one bucket, side by side, in slots.

    Layers that have one input are a group: their A lie together, [S, G * R, I], so that it is read once. Of
    each layer scaling * B lies transposed, [S, R, O].
    """

    def __init__(self, rank: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rank = rank
        self.downs: dict[str, Tensor] = {}
        """By the first path of the group."""
        self.ups: dict[str, Tensor] = {}
        """By path."""
        self.free: list[int] = []
        self.size = 0
        self._dtype, self._device = dtype, device

    def take(self) -> int:
        """Return a free slot, the first one, so that those in use lie together."""
        if not self.free:
            self._grow(max(_FIRST_SLOTS, 2 * self.size))
        return heapq.heappop(self.free)

    def put(self, slot: int, parts: Mapping[str, Part], places: Places) -> None:
        """Copy an adapter's factors into a slot."""
        for path, part in parts.items():
            group, index = places.group_of(path)
            if path not in self.ups:
                place = places.by_path[path]
                self.ups[path] = self._make(self.size, self.rank, place.outputs)
                if group[0] not in self.downs:
                    self.downs[group[0]] = self._make(self.size, self.rank * len(group), place.inputs)
            first = index * self.rank
            self.downs[group[0]][slot, first : first + part.rank].copy_(part.a_RI)
            self.ups[path][slot, : part.rank].copy_((part.b_OR * part.scaling).t())
            self.ups[path][slot, part.rank :].zero_()
        for path, b_SRO in self.ups.items():
            if path not in parts:
                b_SRO[slot].zero_()

    def swap(self, one: int, other: int) -> None:
        """Exchange what lies in two slots."""
        both = [one, other]
        for tensor in (*self.downs.values(), *self.ups.values()):
            tensor[both] = tensor[both[::-1]]

    def _make(self, slots: int, rank: int, width: int) -> Tensor:
        return torch.zeros(slots, rank, width, dtype=self._dtype, device=self._device)

    def _grow(self, size: int) -> None:
        for table in (self.downs, self.ups):
            for path, old in table.items():
                table[path] = self._make(size, old.shape[1], old.shape[2])
                table[path][: self.size].copy_(old)
        for slot in range(self.size, size):
            heapq.heappush(self.free, slot)
        self.size = size


@dataclass(eq=False)
class _Layout:
    """What a step does beside the base, for all of its tokens or for those that the head sees."""

    rows: list[tuple[_Table, Rows, Kernel]]
    """For each table in use, how its slots are used."""
    seats: list[tuple[Seat, Tensor]]
    """The seats in use that have something outside of the tables, and the tokens of each."""
    low: dict[int, tuple[str, Tensor, Tensor]] = field(default_factory=dict)
    """By number of `rows`: the group that went down last, its input, and what came out."""


class Mixed:
    """The seats of adapters on a device, and the hooks that use them."""

    def __init__(
        self, places: Places, dtype: torch.dtype, device: torch.device, head: nn.Module | None = None
    ) -> None:
        self.choice: Choice = UNMEASURED
        self.seats: dict[str, Seat] = {}
        """By the identity of the adapter."""
        self._places, self._dtype, self._device, self._head = places, dtype, device, head
        self._tables: dict[int, _Table] = {}
        self._hooks: dict[str, Any] = {}
        self._all: _Layout | None = None
        self._last: _Layout | None = None
        self._rows = lru_cache(maxsize=256)(Rows.of)

    def seat(self, fitted: Fitted) -> Seat:
        """Bring an adapter onto the device; one that sits there already stays where it is."""
        seat = self.seats.get(fitted.identity)
        if seat is None:
            bucket = next((rank for rank in _BUCKETS if fitted.rank <= rank), fitted.rank)
            table = self._tables.setdefault(bucket, _Table(bucket, self._dtype, self._device))
            seat = Seat(fitted, bucket, table.take())
            shared = {}
            for path, part in fitted.parts.items():
                self._watch(path)
                if _is_shared(self._places.by_path[path]):
                    shared[path] = part
                else:
                    seat.own[path] = self._moved(part.a_RI.t()), self._moved((part.b_OR * part.scaling).t())
                if part.gain_O is not None or part.bias_O is not None:
                    gain, bias = (
                        None if v is None else v.to(self._device) for v in (part.gain_O, part.bias_O)
                    )
                    seat.gains[path] = gain, bias
            table.put(seat.slot, shared, self._places)
            self.seats[fitted.identity] = seat
        return seat

    def unseat(self, identity: str) -> None:
        """Let others have an adapter's seat."""
        seat = self.seats.pop(identity)
        heapq.heappush(self._tables[seat.bucket].free, seat.slot)

    def is_scattered(self, identities: Collection[str]) -> bool:
        """Return whether these adapters have less than half of the slots from their first to their last."""
        slots: dict[int, list[int]] = {}
        for identity in identities:
            slots.setdefault(self.seats[identity].bucket, []).append(self.seats[identity].slot)
        return 2 * len(identities) < sum(max(own) - min(own) + 1 for own in slots.values())

    def gather(self, identities: Collection[str]) -> None:
        """Bring these adapters to the first slots of their tables: slots between them are computed along."""
        for bucket, table in self._tables.items():
            by_slot = {seat.slot: seat for seat in self.seats.values() if seat.bucket == bucket}
            wanted = sorted(slot for slot, seat in by_slot.items() if seat.fitted.identity in identities)
            targets = [slot for slot in range(len(wanted)) if slot not in wanted]
            for slot, to in zip(wanted[len(wanted) - len(targets) :], targets, strict=True):
                table.swap(slot, to)
                if to in by_slot:
                    by_slot[to].slot = slot
                else:
                    table.free[table.free.index(to)] = slot
                by_slot[slot].slot = to
            heapq.heapify(table.free)

    def enter(self, runs: Sequence[Run], last: Sequence[Run] | None = None) -> None:
        """Say what the tokens of the next step run with, in their order; all that is named must sit here.

        `last` is the same for the tokens that the model's head sees, where it sees only some.
        """
        self.leave()
        if any(fitted is not None for fitted, _ in runs):
            self._all = self._layout(runs)
            self._last = self._all if last is None else self._layout(last)

    def leave(self) -> None:
        """Let the base run alone."""
        self._all = self._last = None

    def _layout(self, runs: Sequence[Run]) -> _Layout:
        seats: dict[str, tuple[Seat, list[int]]] = {}
        at = 0
        for fitted, tokens in runs:
            if fitted is not None:
                _, indices = seats.setdefault(fitted.identity, (self.seats[fitted.identity], []))
                indices.extend(range(at, at + tokens))
            at += tokens
        rows = []
        for bucket in {seat.bucket for seat, _ in seats.values()}:
            slots = tuple(
                (self.seats[f.identity].slot, n) if f and self.seats[f.identity].bucket == bucket else (-1, n)
                for f, n in runs
            )
            used = self._rows(slots, self._device)
            rows.append((self._tables[bucket], used, self.choice(used)))
        odd = [
            (seat, torch.tensor(indices, device=self._device))
            for seat, indices in seats.values()
            if seat.own or seat.gains
        ]
        return _Layout(rows, odd)

    def _watch(self, path: str) -> None:
        if path not in self._hooks:
            place = self._places.by_path[path]
            self._hooks[path] = place.module.register_forward_hook(self._hook(path, place))

    def _hook(self, path: str, place: Place) -> Callable[..., None]:
        shared = _is_shared(place)

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            layout = self._last if module is self._head else self._all
            if layout is None:
                return
            x = args[0].reshape(-1) if place.embeds else args[0].reshape(-1, place.inputs)
            y_TO = output.view(-1, place.outputs)
            if shared:
                self._add_shared(path, args[0], x, y_TO, layout)
            for seat, tokens in layout.seats:
                if path in seat.own:
                    _add_own(y_TO, x, tokens, place, seat.own[path])
                if path in seat.gains:
                    _regulate(y_TO, tokens, *seat.gains[path], place.bias)

        return hook

    def _add_shared(self, path: str, given: Tensor, x_TI: Tensor, y_TO: Tensor, layout: _Layout) -> None:
        group, index = self._places.group_of(path)
        for number, (table, rows, kernel) in enumerate(layout.rows):
            if path not in table.ups:
                continue
            seen = layout.low.get(number)
            if seen is not None and seen[0] == group[0] and seen[1] is given:
                low = seen[2]
            else:
                low = kernel.down(x_TI, table.downs[group[0]][rows.slots], rows)
                layout.low[number] = group[0], given, low
            if len(group) > 1:
                low = low[..., index * table.rank : (index + 1) * table.rank]
            kernel.up(y_TO, low, table.ups[path][rows.slots], rows)

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype).contiguous()


def _is_shared(place: Place) -> bool:
    """Return whether the factors at a place lie in a table; those of embeddings and heads are too large."""
    return not place.embeds and place.outputs < _WIDE * place.inputs


def _add_own(y_TO: Tensor, x: Tensor, tokens: Tensor, place: Place, factors: tuple[Tensor, Tensor]) -> None:
    a_IR, b_RO = factors
    low = F.embedding(x[tokens], a_IR) * place.scale if place.embeds else x[tokens] @ a_IR
    y_TO.index_add_(0, tokens, low @ b_RO)


def _regulate(
    y_TO: Tensor, tokens: Tensor, gain_O: Tensor | None, more_O: Tensor | None, bias_O: Tensor | None
) -> None:
    """Multiply the outputs of some tokens, but not the base's bias in them, and add to them."""
    outputs = y_TO[tokens].float()
    if gain_O is not None:
        outputs = outputs * gain_O if bias_O is None else (outputs - bias_O) * gain_O + bias_O
    if more_O is not None:
        outputs = outputs + more_O
    y_TO[tokens] = outputs.to(y_TO.dtype)
