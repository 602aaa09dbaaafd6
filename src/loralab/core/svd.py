"""Singular value decompositions: exact, randomized, and of a product B A without ever building it.

The best approximation of a matrix by one of rank R, in the Frobenius and the spectral norm, keeps its R
largest singular values; the error is the root of the sum of the squares of the others (Eckart and Young
1936; Mirsky 1960).

Shape key: I in, O out, R rank, K a rank at least R.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loralab.errors import ConfigError

__all__ = ["Cut", "LowRank", "exact_svd", "leading_svd", "product_svd", "randomized_svd"]

_OVERSAMPLING = 10
_PASSES = 30
_BLOCK = 1 << 17
"""How many numbers of a matrix are worked on at once where a whole copy of it would cost memory."""


@dataclass(frozen=True)
class LowRank:
    """The leading singular triplets of a matrix M: M_OI is u_OR @ diag(s_R) @ v_RI plus a rest.

    `s_R` falls and is at least 0; the columns of `u_OR` and the rows of `v_RI` are orthonormal.
    """

    u_OR: Tensor
    s_R: Tensor
    v_RI: Tensor
    lost: float = 0.0
    """The Frobenius norm of the rest."""
    excess: float = 1.0
    """`lost` over the least loss possible at this rank: 1 where it is exact, else an estimate."""

    @property
    def rank(self) -> int:
        """The number of triplets."""
        return self.s_R.shape[0]

    @property
    def norm(self) -> float:
        """The Frobenius norm of M."""
        return math.hypot(_norm(self.s_R), self.lost)

    @property
    def error(self) -> float:
        """The Frobenius norm of the rest over that of M; 0 for a zero matrix."""
        return self.lost / self.norm if self.norm else 0.0

    @property
    def energy(self) -> float:
        """The share of M's squared Frobenius norm that is kept; 1 for a zero matrix."""
        return 1.0 - self.error**2

    @property
    def numerical_rank(self) -> int:
        """How many singular values stand out from rounding: s > s_1 * max(O, I) * eps, at least 0."""
        if not self.rank:
            return 0
        size = max(self.u_OR.shape[0], self.v_RI.shape[1])
        floor = self.s_R[0] * size * torch.finfo(self.s_R.dtype).eps
        return int((self.s_R > floor).sum())

    def cut(self, rank: int) -> "LowRank":
        """Return the leading `rank` triplets; all of them if there are no more."""
        if rank >= self.rank:
            return self
        lost = math.hypot(self.lost, _norm(self.s_R[rank:]))
        return LowRank(self.u_OR[:, :rank], self.s_R[:rank], self.v_RI[:rank], lost, self.excess)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return (a_RI, b_OR) with b_OR @ a_RI = u diag(s) v. Each takes the root of s: both weigh alike."""
        root_R = self.s_R.sqrt()
        return root_R[:, None] * self.v_RI, self.u_OR * root_R

    def product(self) -> Tensor:
        """Return u diag(s) v, shape [O, I]."""
        return (self.u_OR * self.s_R) @ self.v_RI


@dataclass(frozen=True)
class Cut:
    """Where to cut a spectrum: at a rank, at a share of energy kept, or at a relative error.

    Raises:
        ConfigError: none or several of the three are given, or one is out of range.
    """

    r: int | None = None
    energy: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) != 1:
            named = ", ".join(given) or "none"
            raise ConfigError(f"give exactly one of r, energy and error; given: {named}.")
        if self.r is not None and self.r < 1:
            raise ConfigError(f"r is {self.r}; a rank is a whole number of at least 1.")
        for name in ("energy", "error"):
            value = given.get(name)
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"{name} is {value}; expected a share above 0, up to 1.")

    def rank(self, spectrum: LowRank) -> int:
        """Return the smallest rank that reaches the cut, at least 1; all of `spectrum` if none does."""
        if self.r is not None:
            return min(self.r, spectrum.rank)
        tails = _tails(spectrum)
        wanted = (spectrum.norm * self._rest) ** 2
        enough = (tails <= wanted).nonzero()
        rank = int(enough[0]) if len(enough) else spectrum.rank
        return max(1, min(rank, spectrum.numerical_rank or 1))

    def reached(self, spectrum: LowRank) -> bool:
        """Return whether `spectrum` holds enough triplets for the cut."""
        return self.r is not None or spectrum.lost <= spectrum.norm * self._rest

    @property
    def _rest(self) -> float:
        """The relative error allowed."""
        if self.energy is not None:
            return math.sqrt(1 - self.energy)
        return self.error or 0.0


def exact_svd(m_OI: Tensor) -> LowRank:
    """Return all min(O, I) singular triplets of a matrix, in fp32 or wider."""
    u, s, v = torch.linalg.svd(_wide(m_OI), full_matrices=False)
    return LowRank(u, s, v)


def product_svd(a_RI: Tensor, b_OR: Tensor, scaling: float = 1.0) -> LowRank:
    """Return the singular triplets of scaling * b_OR @ a_RI in float64: min(O, I, R) of them, and no rest.

    B = Q_B T_B and A^T = Q_A T_A (QR) give B A = Q_B (T_B T_A^T) Q_A^T, and the SVD of the R x R core is
    that of the product once Q_B and Q_A^T are put around it. No [O, I] matrix is built: the cost is
    O((O + I) R^2 + R^3). A negative `scaling` turns u around.
    """
    q_b, t_b = torch.linalg.qr(b_OR.detach().double())
    q_a, t_a = torch.linalg.qr(a_RI.detach().double().t())
    u, s, v = torch.linalg.svd(t_b @ t_a.t() * scaling, full_matrices=False)
    return LowRank(q_b @ u, s, v @ q_a.t())


def randomized_svd(m_OI: Tensor, rank: int, *, seed: int = 0, tolerance: float = 0.005) -> LowRank:
    """Return about the `rank` leading singular triplets of a matrix, the same ones for the same seed.

    Halko, Martinsson and Tropp 2011 (SIAM Review 53), algorithms 4.4 and 5.1: the range of M is found from M
    times a random [I, K] matrix, K = rank * 1.5 + 10, then sharpened by power iterations with a QR after
    each product. One pass leaves an expected error of at most sqrt(1 + R / (K - R - 1)) times the least
    possible (their theorem 10.5), which flat spectra come near to. So passes are added until the energy
    that the R triplets hold grows no more: from its last two gains the rest is summed as a geometric row,
    and the loop ends when that would lower the error by less than `tolerance`. `lost` is measured on M
    itself; `excess` is the estimate.

    Where K is not small beside min(O, I), the exact SVD is cheaper and is cut instead.
    """
    m_OI = _wide(m_OI)
    smaller = min(m_OI.shape)
    width = rank + rank // 2 + _OVERSAMPLING
    if 2 * width >= smaller:
        return exact_svd(m_OI).cut(rank)
    generator = torch.Generator(m_OI.device).manual_seed(seed)
    start_IK = torch.randn(m_OI.shape[1], width, generator=generator, dtype=m_OI.dtype, device=m_OI.device)
    energy = _squared_norm(m_OI)
    rounding = torch.finfo(m_OI.dtype).eps * energy
    q_OK = torch.linalg.qr(m_OI @ start_IK)[0]
    kept: list[float] = []
    for _ in range(_PASSES):
        p_IK, core_KK = torch.linalg.qr(m_OI.t() @ q_OK)
        u_KK, s_K, v_KK = torch.linalg.svd(core_KK.t(), full_matrices=False)
        kept.append(_norm(s_K[:rank]) ** 2)
        left = max(energy - kept[-1], 0.0)
        to_come = _to_come(kept)
        if to_come <= max(2 * tolerance * left, rounding):
            break
        q_OK = torch.linalg.qr(m_OI @ p_IK)[0]
    u_OR, s_R = q_OK @ u_KK[:, :rank], s_K[:rank]
    v_RI = v_KK[:rank] @ p_IK.t()
    excess = math.sqrt(left / max(left - to_come, 1e-300)) if left > to_come else 1.0
    return LowRank(u_OR, s_R, v_RI, _rest_norm(m_OI, u_OR * s_R, v_RI), excess)


def leading_svd(m_OI: Tensor, cut: Cut, *, seed: int = 0) -> LowRank:
    """Return the singular triplets of a matrix up to a cut, by `randomized_svd` while few of them do.

    For an energy or an error the rank is doubled until it is reached.
    """
    if cut.r is not None:
        return randomized_svd(m_OI, cut.r, seed=seed)
    rank = 16
    while 8 * rank <= min(m_OI.shape):
        found = randomized_svd(m_OI, rank, seed=seed)
        if cut.reached(found):
            return found.cut(cut.rank(found))
        rank *= 2
    found = exact_svd(m_OI)
    return found.cut(cut.rank(found))


def _to_come(kept: list[float]) -> float:
    """Return the sum of the gains still to come, as far as the last ones tell."""
    if len(kept) < 3:
        return math.inf
    before, last = kept[-2] - kept[-3], kept[-1] - kept[-2]
    if last <= 0:
        return 0.0
    ratio = min(last / before, 0.95) if before > 0 else 0.95
    return last * ratio / (1 - ratio)


def _tails(spectrum: LowRank) -> Tensor:
    """Return the energy lost at rank 0, 1, 2 ...: summed from the small end, so that none is rounded away."""
    squares = spectrum.s_R.double().square().flip(0)
    start = torch.zeros(1, dtype=torch.float64, device=squares.device)
    return torch.cat([start, squares.cumsum(0)]).flip(0) + spectrum.lost**2


def _wide(matrix: Tensor) -> Tensor:
    return matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def _blocks(m_OI: Tensor) -> list[slice]:
    step = max(1, _BLOCK // max(1, m_OI.shape[1]))
    return [slice(start, start + step) for start in range(0, m_OI.shape[0], step)]


def _squared_norm(m_OI: Tensor) -> float:
    return sum(_norm(m_OI[rows]) ** 2 for rows in _blocks(m_OI))


def _rest_norm(m_OI: Tensor, us_OR: Tensor, v_RI: Tensor) -> float:
    """Return |M - us v|, block by block: a difference of squared norms would lose half of the digits."""
    return math.sqrt(sum(_norm(m_OI[rows] - us_OR[rows] @ v_RI) ** 2 for rows in _blocks(m_OI)))
