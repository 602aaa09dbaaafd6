"""An adapter at other ranks: the best one of each rank, found in factor space.

Shape key: I in, O out, R rank.
"""

import heapq
from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.core.derived import explicit_targets
from loralab.core.svd import Cut, LowRank, product_svd
from loralab.errors import ConfigError
from loralab.tools.parts import Made, Part, assemble, mirrored, parts_of, rest_of, rounded, tied_parts

__all__ = ["Resized", "ResizedLayer", "resize"]


@dataclass(frozen=True)
class ResizedLayer:
    """What became of one module; `rank` 0 is one that was left out."""

    module: str
    rank_before: int
    rank: int
    energy: float
    """The share of the delta's squared norm that is kept."""
    error: float
    """|new delta - delta| / |delta|, both Frobenius."""
    bytes: int


@dataclass(frozen=True)
class Resized:
    """The resized adapter and what became of each module."""

    adapter: Adapter
    layers: tuple[ResizedLayer, ...]
    bytes_before: int
    bytes: int


def resize(
    adapter: Adapter,
    *,
    r: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    max_bytes: int | None = None,
) -> Resized:
    """Return the adapter at other ranks, each delta the best of its rank (Eckart and Young 1936).

    One of four says how far: a rank for all (a module keeps a smaller one), the share of energy that each
    keeps, the relative error of each, or the bytes of all tensors together. Bytes are spent on the largest
    next s^2 per byte of all modules, which loses the least in sum; a module that gets none is left out.
    Tensors that are no factors are kept. Scalings become 1; values keep their dtype. A head that is tied to
    its embedding stays so.

    Of a DoRA adapter, m (W + B A) / |W + B A|, B A is resized and m kept. The error is that of B A; the
    rows keep their lengths m whatever is cut.

    Raises:
        ConfigError: none or several of the four are given, or one is out of range or too small; or bytes
            leave a module with no factors that has a magnitude or a bias of its own.
        AdapterError: the adapter cannot be taken apart, see `parts_of`, or the result overflows its dtype.
    """
    if max_bytes is not None and any(given is not None for given in (r, energy, error)):
        raise ConfigError("give exactly one of r, energy, error and max_bytes.")
    cut = Cut(r, energy, error) if max_bytes is None else None
    parts = parts_of(adapter, "resize it")
    rest = _unscaled(rest_of(adapter), parts)
    ties = tied_parts(parts)
    spectra = {
        path: product_svd(part.factors.a_RI, part.factors.b_OR, part.factors.scaling)
        for path, part in parts.items()
        if path not in ties
    }
    if cut is not None:
        ranks = {path: cut.rank(spectrum) for path, spectrum in spectra.items()}
    else:
        copies = Counter(ties.values())
        prices = {path: _price(parts[path]) * (1 + copies[path]) for path in spectra}
        ranks = _spend((max_bytes or 0) - sum(t.nbytes for t in rest.values()), prices, spectra)
    _check_left(ranks, rest)
    kept = {path: spectra[path].cut(rank) for path, rank in ranks.items() if rank}
    factors = {path: _factors(path, parts[path], spectrum) for path, spectrum in kept.items()}
    factors |= mirrored(ties, factors)
    targets = None if len(factors) == len(parts) else explicit_targets(factors)
    resized = assemble(adapter.config, factors, rest, targets)
    sources = {path: ties.get(path, path) for path in parts}
    layers = tuple(_layer(p, parts[p], kept.get(s), spectra[s].norm > 0) for p, s in sources.items())
    return Resized(resized, layers, _bytes(adapter), _bytes(resized))


def _factors(path: str, part: Part, spectrum: LowRank) -> Made:
    return (part.place, *rounded(path, spectrum.factors(), part.factors.a_RI.dtype))


def _price(part: Part) -> int:
    """Return the bytes of one rank."""
    return sum(part.shape) * part.factors.a_RI.element_size()


def _spend(budget: int, prices: dict[str, int], spectra: dict[str, LowRank]) -> dict[str, int]:
    """Return the ranks that a budget of bytes buys: always the largest s^2 per byte that still fits."""
    ranks = dict.fromkeys(prices, 0)
    offers: list[tuple[float, str]] = []

    def offer(path: str) -> None:
        s_R, rank = spectra[path].s_R, ranks[path]
        if rank < spectra[path].numerical_rank:
            heapq.heappush(offers, (-(float(s_R[rank]) ** 2) / prices[path], path))

    for path in prices:
        offer(path)
    while offers:
        path = heapq.heappop(offers)[1]
        if prices[path] <= budget:
            budget -= prices[path]
            ranks[path] += 1
            offer(path)
    if not any(ranks.values()):
        cheapest = min(prices, key=lambda path: prices[path])
        raise ConfigError(
            f"max_bytes leaves {max(budget, 0):,} bytes for factors; one rank of the smallest module, "
            f"{cheapest!r}, takes {prices[cheapest]:,}."
        )
    return ranks


def _check_left(ranks: dict[str, int], rest: dict[str, Tensor]) -> None:
    for path in (path for path, rank in ranks.items() if not rank):
        own = [key for key in rest if key in (f"{path}.lora_magnitude_vector", f"{path}.lora_B.bias")]
        if own:
            raise ConfigError(
                f"max_bytes leaves no rank for {path!r}, whose {own[0].removeprefix(path + '.')} needs one; "
                "allow more bytes, or use r, energy or error."
            )


def _unscaled(rest: dict[str, Tensor], parts: dict[str, Part]) -> dict[str, Tensor]:
    """Return the other tensors; B's biases, which are scaled as B is, take the scaling into themselves."""
    ending = ".lora_B.bias"
    return {
        key: t * parts[key.removesuffix(ending)].factors.scaling if key.endswith(ending) else t
        for key, t in rest.items()
    }


def _layer(path: str, part: Part, kept: LowRank | None, moves: bool) -> ResizedLayer:
    if kept is None:
        return ResizedLayer(path, part.factors.rank, 0, 0.0 if moves else 1.0, float(moves), 0)
    size = kept.rank * _price(part)
    return ResizedLayer(path, part.factors.rank, kept.rank, kept.energy, kept.error, size)


def _bytes(adapter: Adapter) -> int:
    return sum(tensor.nbytes for tensor in adapter.tensors.values())
