"""What an adapter's deltas look like: their norms, spectra and effective ranks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loralab.core.adapter import Adapter
from loralab.core.finite import check_finite
from loralab.core.svd import product_svd

__all__ = ["Description", "describe", "entropy_rank", "place_in_grid", "stable_rank"]

_BLOCK = re.compile(r"^(?:.*?\.)?([^.]+\.\d+)\.(.+)$")


@dataclass(frozen=True)
class Description:
    """One module's delta."""

    module: str
    r: int
    inputs: int
    out: int
    scaling: float
    norm: float | None
    """The Frobenius norm of B A with its scaling; None where the factors are grouped and have no product."""
    spectrum: tuple[float, ...]
    """The singular values, largest first; empty where there is no product."""
    stable_rank: float
    entropy_rank: float
    magnitude: float | None = None
    """The norm of DoRA's vector of row lengths; None without DoRA."""


def describe(adapter: Adapter) -> tuple[Description, ...]:
    """Return a description of every module's delta, its spectrum computed in factor space.

    Of a DoRA adapter it is B A that is described; the whole delta depends on the base.

    Raises:
        AdapterError: it holds numbers that are not finite.
    """
    check_finite(adapter, "describe it")
    found = []
    for path, factors in adapter.modules().items():
        spectrum: tuple[float, ...] = ()
        experts = adapter.config.target_parameters and factors.rank != adapter.config.rank_of(path)
        if factors.b_OR.shape[1] == factors.rank and not experts:
            s_R = product_svd(factors.a_RI, factors.b_OR, factors.scaling).s_R
            spectrum = tuple(s_R.tolist())
        magnitude = adapter.tensors.get(f"{path}.lora_magnitude_vector")
        found.append(
            Description(
                path,
                factors.rank,
                factors.a_RI.shape[1],
                factors.b_OR.shape[0],
                factors.scaling,
                factors.norm() if spectrum else None,
                spectrum,
                stable_rank(spectrum),
                entropy_rank(spectrum),
                None if magnitude is None else float(magnitude.double().norm()),
            )
        )
    return tuple(found)


def stable_rank(spectrum: Sequence[float]) -> float:
    """Return |D|_F^2 / |D|_2^2, the energy counted in units of the largest direction; 0 for a zero matrix.

    It is at most the rank and hardly moves with small singular values (Rudelson and Vershynin 2007).
    """
    s = torch.tensor(spectrum, dtype=torch.float64)
    return float((s / s[0]).square().sum()) if len(s) and s[0] > 0 else 0.0


def entropy_rank(spectrum: Sequence[float]) -> float:
    """Return exp(-sum p ln p) with p = s / sum s: how many equal singular values would spread alike.

    The effective rank of Roy and Vetterli 2007; 0 for a zero matrix.
    """
    s = torch.tensor(spectrum, dtype=torch.float64)
    if not len(s) or s.sum() <= 0:
        return 0.0
    p = s[s > 0] / s.sum()
    return float(torch.exp(-(p * p.log()).sum()))


def place_in_grid(path: str) -> tuple[str, str]:
    """Return (block, module within it) of a path: ("layers.3", "self_attn.q_proj")."""
    found = _BLOCK.match(path)
    return (found[1], found[2]) if found else ("", path)
