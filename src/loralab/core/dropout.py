"""Dropout that stores no mask: the mask is a function of a seed, made again where it is needed.

Where little is dropped from much, on a CPU, the places of what goes are drawn: a twentieth of the random
numbers that a mask takes. Else a mask is of integers as wide as the numbers, all bits set where a number
stays and none where it goes: `x & mask` takes a tenth of the time of `x * keep` with a boolean.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Mask", "draw_seed", "drop", "kept"]

_STEPS = 1 << 15
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a number, the integers as wide as it."""
_RARE = 0.2
"""Up to this probability drawing places is the faster way."""
_MANY = 4096


@dataclass(frozen=True)
class Mask:
    """Which numbers of a tensor stay: the places of those that go, or bits for every number."""

    factor: float
    """One over the probability with which a number stays. It can be put on something smaller than x."""
    gone: Tensor | None = None
    bits: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """Return x with zeros where numbers go, not yet times the factor."""
        if self.bits is None:
            return self.of_(x.clone(memory_format=torch.contiguous_format))
        return (x.view(self.bits.dtype) & self.bits).view(x.dtype)

    def of_(self, x: Tensor) -> Tensor:
        """Return x itself, which must be contiguous, changed as by `of`."""
        if self.gone is not None:
            x.view(-1).index_fill_(0, self.gone, 0)
        elif self.bits is not None:
            x.view(self.bits.dtype).bitwise_and_(self.bits)
        return x


def draw_seed() -> int:
    """Return a seed from torch's global generator, so that runs repeat and checkpoints restore it."""
    return int(torch.randint(0, 2**62, (), dtype=torch.int64))


def drop(x: Tensor, p: float, seed: int) -> Tensor:
    """Return x with each number zeroed with probability p, the rest scaled by 1 / (1 - p).

    The same seed, shape, p and device always give the same mask. The numbers go with nearly the probability
    p, and the factor is for what it really is: of places drawn with repetition, their count is a whole
    number; in a mask, p is a multiple of 2**-15, as four numbers share one 64-bit draw.
    """
    mask = kept(x, p, seed)
    return x if mask is None else mask.of(x).mul_(mask.factor)


def kept(x: Tensor, p: float, seed: int) -> Mask | None:
    """Return which numbers of x stay, None if all do."""
    count = x.numel()
    if 0 < p <= _RARE and count >= _MANY and x.device.type == "cpu":
        # A place goes unless none of the draws is it: 1 - p = (1 - 1 / count) ** draws.
        draws = round(math.log1p(-p) / math.log1p(-1 / count))
        generator = torch.Generator().manual_seed(seed)
        gone = torch.randint(0, count, (draws,), generator=generator)
        return Mask(math.exp(-draws * math.log1p(-1 / count)), gone=gone)
    threshold = min(round(p * _STEPS), _STEPS - 1)
    if threshold == 0:
        return None
    drawn = _uniform(count, seed, x.device).view(x.shape)
    # threshold - 1 - drawn is negative where a number stays, and its sign fills all bits.
    bits = drawn.neg_().add_(threshold - 1).bitwise_right_shift_(15)
    return Mask(_STEPS / (_STEPS - threshold), bits=bits.to(_INTEGERS[x.element_size()]))


def _uniform(count: int, seed: int, device: torch.device) -> Tensor:
    """Return int16 numbers from 0 to 2**15 - 1."""
    generator = torch.Generator(device=device).manual_seed(seed)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    return words.view(torch.int16)[:count].bitwise_and_(_STEPS - 1)
