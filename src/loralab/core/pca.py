"""Principal components of data that comes in batches. Shape key: N rows, I numbers a row, K components."""

import torch
from torch import Tensor

__all__ = ["IncrementalPca"]

_SEED = 42
_ITERATIONS = 4


class IncrementalPca:
    """The K leading principal directions of all rows seen so far, of which only these and a mean are kept.

    Ross, Lim, Lin and Yang 2008 (International Journal of Computer Vision 77), section 3.1: the old
    directions, each as long as its singular value, stand for the old rows; they are stacked with the new
    rows, less their mean, and with one row for how far the mean has moved, and decomposed again.
    """

    def __init__(self, components: int) -> None:
        self.components = components
        self.directions_KI: Tensor | None = None
        """Orthonormal rows."""
        self.singular_K = torch.empty(0)
        self._mean_I = torch.empty(0)
        self._count = 0
        self._spread = 0.0
        """The sum of squared distances of all rows from their mean."""

    @property
    def explained_K(self) -> Tensor:
        """The share of the variance that lies along each direction."""
        return self.singular_K.double().square() / max(self._spread, torch.finfo(torch.float64).tiny)

    def add(self, rows_NI: Tensor) -> Tensor:
        """Take in at least K rows; return by how much each direction has turned, as a cosine, 0 at first."""
        rows_NI = rows_NI.to(torch.float32)
        n = rows_NI.shape[0]
        mean_I = rows_NI.mean(0, dtype=torch.float64)
        stacked = rows_NI - mean_I.to(rows_NI.dtype)
        self._spread += float(stacked.square().sum(dtype=torch.float64))
        old = self.directions_KI
        if old is None:
            self._mean_I = mean_I
        else:
            moved_I = self._mean_I - mean_I
            weight = self._count * n / (self._count + n)
            self._spread += weight * float(moved_I.square().sum())
            shift_1I = (moved_I * weight**0.5).to(rows_NI.dtype)[None]
            stacked = torch.cat([self.singular_K[:, None] * old, stacked, shift_1I])
            self._mean_I = self._mean_I - moved_I * (n / (self._count + n))
        self._count += n
        s_K, new = _leading(stacked, self.components)
        turned_K = torch.zeros(len(new)) if old is None else (new * old).sum(1).abs().cpu()
        self.singular_K, self.directions_KI = s_K, new
        return turned_K


def _leading(rows_NI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    gpus = [rows_NI.device] if rows_NI.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(_SEED)
        _, s_K, v_IK = torch.svd_lowrank(rows_NI, min(2 * rank, *rows_NI.shape), niter=_ITERATIONS)
    v_KI = v_IK.t()[:rank]
    largest_K1 = v_KI.gather(1, v_KI.abs().argmax(1, keepdim=True))
    return s_K[:rank], v_KI * largest_K1.sign()
