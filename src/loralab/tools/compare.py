"""Two adapters side by side: how far their deltas, and the subspaces they live in, agree.

Shape key: I in, O out, R rank.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loralab.core.adapter import Adapter, Factors
from loralab.core.svd import LowRank, product_svd
from loralab.errors import AdapterError
from loralab.tools.parts import parts_of

__all__ = ["ComparedLayer", "Comparison", "Subspaces", "compare", "principal_angles"]


@dataclass(frozen=True)
class Subspaces:
    """Two subspaces of one space."""

    angles: tuple[float, ...]
    """Principal angles in degrees, smallest first: 0 is a direction that both have, 90 one that they lack."""
    overlap: float
    """The mean squared cosine of the angles: 1 if the smaller subspace lies within the larger, else less."""
    by_chance: float
    """The overlap to expect of random subspaces of these dimensions."""


@dataclass(frozen=True)
class ComparedLayer:
    """One module that both adapters have."""

    module: str
    norms: tuple[float, float]
    cosine: float
    """The cosine of the two deltas as vectors."""
    columns: Subspaces
    """What the deltas write: the column spaces, in [O]."""
    rows: Subspaces
    """What they read: the row spaces, in [I]."""
    magnitude: float | None = None
    """|m1 - m2| / |m1| of DoRA's row lengths; None unless both adapters have them."""


@dataclass(frozen=True)
class Comparison:
    """All the modules, and the deltas taken together."""

    layers: tuple[ComparedLayer, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    norms: tuple[float, float]
    cosine: float
    """Of all deltas together; a module that one adapter lacks counts as zero there."""


def compare(one: Adapter, two: Adapter) -> Comparison:
    """Return how two adapters agree, module by module, all of it in factor space.

    Of DoRA adapters the products B A are compared, and the magnitudes by themselves.

    Raises:
        AdapterError: they have no module in common, or one has another shape: they are of different bases.
            Or one cannot be taken apart, see `parts_of`.
    """
    first = {path: part.factors for path, part in parts_of(one, "compare the first").items()}
    second = {path: part.factors for path, part in parts_of(two, "compare the second").items()}
    common = [path for path in first if path in second]
    if not common:
        raise AdapterError(
            f"the adapters have no module in common: one has {next(iter(first))!r}, the other "
            f"{next(iter(second))!r}."
        )
    layers = tuple(
        dataclasses.replace(_layer(path, first[path], second[path]), magnitude=_magnitude(path, one, two))
        for path in common
    )
    norms = _total(first), _total(second)
    inner = sum(first[path].inner(second[path]) for path in common)
    cosine = inner / (norms[0] * norms[1]) if norms[0] and norms[1] else 0.0
    return Comparison(
        layers,
        tuple(path for path in first if path not in second),
        tuple(path for path in second if path not in first),
        norms,
        cosine,
    )


def principal_angles(u_OR: Tensor, w_OR: Tensor) -> tuple[float, ...]:
    """Return the principal angles, in degrees, between the spans of two sets of orthonormal columns.

    Their cosines are the singular values of U^T W (Bjorck and Golub 1973); below 45 degrees the sines, from
    W - U U^T W, are the ones without cancellation.
    """
    if min(u_OR.shape[1], w_OR.shape[1]) == 0:
        return ()
    if u_OR.shape[1] < w_OR.shape[1]:
        u_OR, w_OR = w_OR, u_OR
    inside = u_OR.t() @ w_OR
    cosines = torch.linalg.svdvals(inside).clamp(max=1)
    sines = torch.linalg.svdvals(w_OR - u_OR @ inside).flip(0).clamp(max=1)
    angles = torch.where(cosines > math.sqrt(0.5), sines.asin(), cosines.acos())
    return tuple(angles.rad2deg().tolist())


def _layer(path: str, one: Factors, two: Factors) -> ComparedLayer:
    shapes = [[f.b_OR.shape[0], f.a_RI.shape[1]] for f in (one, two)]
    if shapes[0] != shapes[1]:
        raise AdapterError(
            f"module {path!r} is {shapes[0]} in one adapter and {shapes[1]} in the other: they were trained "
            "on different bases."
        )
    first, second = _spectrum(one), _spectrum(two)
    return ComparedLayer(
        path,
        (one.norm(), two.norm()),
        one.cosine(two),
        _subspaces(first.u_OR, second.u_OR),
        _subspaces(first.v_RI.t(), second.v_RI.t()),
    )


def _magnitude(path: str, one: Adapter, two: Adapter) -> float | None:
    vectors = [adapter.tensors.get(f"{path}.lora_magnitude_vector") for adapter in (one, two)]
    first, second = (None if vector is None else vector.double().flatten() for vector in vectors)
    if first is None or second is None:
        return None
    return float((first - second).norm() / first.norm()) if first.any() else 0.0


def _spectrum(factors: Factors) -> LowRank:
    found = product_svd(factors.a_RI, factors.b_OR, factors.scaling)
    # Factors in half precision have no directions below their own rounding.
    floor = found.s_R[:1] * torch.finfo(factors.a_RI.dtype).eps
    return found.cut(int((found.s_R > floor).sum()))


def _subspaces(one_OR: Tensor, two_OR: Tensor) -> Subspaces:
    angles = principal_angles(one_OR, two_OR)
    if not angles:
        return Subspaces((), 0.0, 0.0)
    overlap = sum(math.cos(math.radians(angle)) ** 2 for angle in angles) / len(angles)
    return Subspaces(angles, overlap, max(one_OR.shape[1], two_OR.shape[1]) / one_OR.shape[0])


def _total(factors: dict[str, Factors]) -> float:
    return math.sqrt(sum(f.norm() ** 2 for f in factors.values()))
