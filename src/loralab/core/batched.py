"""Many adapters in one batch: y_t += s_k B_k A_k x_t, where k is the slot of token t.

Slots hold adapters of one rank side by side: A as [S, R, I] and s * B, transposed, as [S, R, O]. The layout
of a batch is worked out once for all layers (`Rows`); a kernel then adds to the output of one layer.

Shape key: T tokens, I in, O out, R rank, S slots in use, M the most tokens of one slot.
"""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["KERNELS", "UNMEASURED", "Choice", "Kernel", "Rows", "calibrate"]


@dataclass(frozen=True)
class Rows:
    """Which tokens of a batch use which slots: `runs` has (slot, tokens) in the order of the batch.

    A slot of -1 is for tokens without an adapter. Slots that no token uses but that lie between used ones are
    computed along, so that the used ones are one slice and nothing is copied.
    """

    runs: tuple[tuple[int, int], ...]
    device: torch.device

    @classmethod
    def of(cls, runs: Sequence[tuple[int, int]], device: torch.device) -> "Rows":
        """Return the rows of such runs, neighbours of one slot joined."""
        joined = [
            (slot, sum(tokens for _, tokens in group))
            for slot, group in itertools.groupby(runs, key=lambda run: run[0])
        ]
        return cls(tuple(joined), device)

    @cached_property
    def used(self) -> list[int]:
        """The slots in use, ascending."""
        return sorted({slot for slot, _ in self.runs if slot >= 0})

    @cached_property
    def slots(self) -> slice:
        """The slots from the first in use to the last."""
        return slice(self.used[0], self.used[-1] + 1)

    @property
    def width(self) -> int:
        """How many slots that are."""
        return self.used[-1] + 1 - self.used[0]

    @cached_property
    def tokens(self) -> int:
        """How many tokens use a slot."""
        return sum(tokens for slot, tokens in self.runs if slot >= 0)

    @cached_property
    def block(self) -> slice | None:
        """The tokens that use slots, if they lie together in the order of their slots, as many for each."""
        starts = [0, *itertools.accumulate(tokens for _, tokens in self.runs)]
        active = [
            (slot, tokens, at) for (slot, tokens), at in zip(self.runs, starts, strict=False) if slot >= 0
        ]
        in_order = [slot for slot, _, _ in active] == list(range(self.slots.start, self.slots.stop))
        alike = len({tokens for _, tokens, _ in active}) == 1
        start, end = active[0][2], active[-1][2] + active[-1][1]
        return slice(start, end) if in_order and alike and end - start == self.tokens else None

    @cached_property
    def slot_T(self) -> Tensor:
        """The slot of each token, counted from the first in use; negative where there is none."""
        counts = torch.tensor([tokens for _, tokens in self.runs])
        values = torch.tensor([slot - self.slots.start if slot >= 0 else -1 for slot, _ in self.runs])
        return torch.repeat_interleave(values, counts).to(self.device)

    @cached_property
    def order(self) -> Tensor:
        """The tokens that use slots, by slot."""
        wanted = self.slot_T >= 0
        by_slot = torch.argsort(self.slot_T, stable=True)
        return by_slot[int((~wanted).sum()) :]

    @cached_property
    def ends(self) -> Tensor:
        """Where each slot's tokens end in `order`, as int32."""
        counts = torch.bincount(self.slot_T[self.order], minlength=self.width)
        return counts.cumsum(0).to(torch.int32)

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor, int]:
        """For slots of as many tokens each: (the token at [S * M], the place of each of `order`, M)."""
        counts = torch.bincount(self.slot_T[self.order], minlength=self.width)
        most = int(counts.max())
        slot = self.slot_T[self.order]
        firsts = counts.cumsum(0) - counts
        places = slot * most + torch.arange(len(slot), device=self.device) - firsts[slot]
        source = torch.zeros(self.width * most, dtype=torch.long, device=self.device)
        source[places] = self.order
        return source, places, most

    @cached_property
    def is_whole(self) -> bool:
        """Whether all tokens use one slot."""
        return self.width == 1 and all(slot >= 0 for slot, _ in self.runs)

    @cached_property
    def mask(self) -> Tensor:
        """[T, S, 1]: whether a slot is none of a token's."""
        slots = torch.arange(self.width, device=self.device)
        return (self.slot_T[:, None] != slots)[..., None]


class Kernel(Protocol):
    """Two products, B (A x), for all slots of a batch.

    Layers that have one input have their A side by side, [S, G * R, I] for G layers: `down` is done once for
    them, and each goes `up` with its own part of what came out, cut from the last dimension.
    """

    def down(self, x_TI: Tensor, a_SRI: Tensor, rows: Rows) -> Tensor:
        """Return A x in the kernel's own layout, R in the last dimension."""

    def up(self, y_TO: Tensor, low: Tensor, b_SRO: Tensor, rows: Rows) -> None:
        """Add B (A x) to y, in place."""


class Dense:
    """Products with all slots at once, what is not a token's own set to zero between them."""

    def down(self, x_TI: Tensor, a_SRI: Tensor, rows: Rows) -> Tensor:
        low_TR = torch.mm(x_TI, a_SRI.flatten(0, 1).t())
        low_TSR: Tensor = low_TR.unflatten(1, (rows.width, -1))
        # Not multiplied by 0: what is infinite in one slot would be NaN for the tokens of the others.
        return low_TSR if rows.is_whole else low_TSR.masked_fill_(rows.mask, 0.0)

    def up(self, y_TO: Tensor, low: Tensor, b_SRO: Tensor, rows: Rows) -> None:
        y_TO.addmm_(low.flatten(1), b_SRO.flatten(0, 1))


class Padded:
    """Batched products, each slot with its own tokens, as many for each as the largest has."""

    def down(self, x_TI: Tensor, a_SRI: Tensor, rows: Rows) -> Tensor:
        if rows.block is None:
            source, _, _ = rows.padded
            return torch.bmm(x_TI[source].unflatten(0, (rows.width, -1)), a_SRI.mT)
        return torch.bmm(x_TI[rows.block].unflatten(0, (rows.width, -1)), a_SRI.mT)

    def up(self, y_TO: Tensor, low: Tensor, b_SRO: Tensor, rows: Rows) -> None:
        if rows.block is None:
            _, places, _ = rows.padded
            y_TO.index_add_(0, rows.order, torch.bmm(low, b_SRO).flatten(0, 1)[places])
        else:
            y_TO[rows.block].unflatten(0, (rows.width, -1)).baddbmm_(low, b_SRO)


class Grouped:
    """Grouped products over the tokens in the order of their slots; no padding, however uneven they are."""

    def down(self, x_TI: Tensor, a_SRI: Tensor, rows: Rows) -> Tensor:
        low: Tensor = torch.nn.functional.grouped_mm(x_TI[rows.order], a_SRI.mT, offs=rows.ends)
        return low

    def up(self, y_TO: Tensor, low: Tensor, b_SRO: Tensor, rows: Rows) -> None:
        more = torch.nn.functional.grouped_mm(low.contiguous(), b_SRO, offs=rows.ends)
        y_TO.index_add_(0, rows.order, more)


KERNELS: dict[str, Kernel] = {"dense": Dense(), "padded": Padded(), "grouped": Grouped()}


@dataclass(frozen=True)
class Choice:
    """Which kernel was the fastest, by (slots, most tokens of a slot)."""

    seconds: dict[tuple[int, int], dict[str, float]]

    def __call__(self, rows: Rows) -> Kernel:
        """Return the kernel for a batch: that of the nearest batch that was measured."""
        most = max(tokens for slot, tokens in rows.runs if slot >= 0)
        near = min(self.seconds, key=lambda at: abs(_log(at[0], rows.width)) + abs(_log(at[1], most)))
        found = self.seconds[near]
        return KERNELS[min(found, key=found.__getitem__)]


UNMEASURED = Choice({(1, 1): {"padded": 0.0}})
"""The choice without a calibration."""


def _log(a: int, b: int) -> float:
    return math.log(a / b)


def calibrate(
    inputs: int, outputs: int, rank: int, slots: int, dtype: torch.dtype, device: torch.device
) -> Choice:
    """Time the kernels on a layer of that size with 1 to `slots` slots; takes about a second on a CPU."""
    counts = sorted({1, *(n for n in (2, 4, 8, 16, 32) if n <= slots)})
    a = torch.randn(counts[-1], rank, inputs, device=device).to(dtype)
    b = torch.randn(counts[-1], rank, outputs, device=device).to(dtype)
    found: dict[tuple[int, int], dict[str, float]] = {}
    for count, most in itertools.product(counts, (1, 8, 64)):
        if count * most > 512:
            continue
        rows = Rows.of([(slot, most) for slot in range(count)], device)
        x = torch.randn(count * most, inputs, device=device).to(dtype)
        y = torch.zeros(count * most, outputs, device=device, dtype=dtype)
        args = (y, x, a[:count], b[:count], rows)
        # In turns, so that whatever disturbs the machine disturbs all.
        turns = [{name: _seconds(kernel, args) for name, kernel in KERNELS.items()} for _ in range(8)]
        found[count, most] = {name: min(turn[name] for turn in turns) for name in KERNELS}
    return Choice(found)


def _seconds(kernel: Kernel, args: tuple[Tensor, Tensor, Tensor, Tensor, Rows]) -> float:
    began = time.perf_counter()
    y_TO, x_TI, a_SRI, b_SRO, rows = args
    kernel.up(y_TO, kernel.down(x_TI, a_SRI, rows), b_SRO, rows)
    if y_TO.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - began
