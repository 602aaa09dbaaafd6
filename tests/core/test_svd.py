"""The decompositions against LAPACK's full SVD in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loralab.core.svd import Cut, LowRank, exact_svd, leading_svd, product_svd, randomized_svd
from loralab.errors import ConfigError

SPECTRA = {
    "level": lambda i, n: 1.0,
    "falling": lambda i, n: 1 - i / n,
    "quarter power": lambda i, n: (i + 1) ** -0.25,
    "half power": lambda i, n: (i + 1) ** -0.5,
    "power": lambda i, n: 1 / (i + 1),
    "step": lambda i, n: 1.0 if i < 20 else 0.3,
    "geometric": lambda i, n: 0.9**i,
}


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(spectrum: str, rows: int, columns: int) -> Tensor:
    """A matrix with the singular values of the named spectrum, and random singular vectors."""
    n = min(rows, columns)
    s = torch.tensor([SPECTRA[spectrum](i, n) for i in range(n)], dtype=torch.float64)
    u = torch.linalg.qr(gaussian(rows, n, seed=1))[0]
    v = torch.linalg.qr(gaussian(columns, n, seed=2))[0]
    return (u * s) @ v.t()


def assert_triplets(found: LowRank) -> None:
    """Orthonormal vectors, and singular values that fall."""
    eye = torch.eye(found.rank, dtype=found.s_R.dtype)
    close = 100 * torch.finfo(found.s_R.dtype).eps
    torch.testing.assert_close(found.u_OR.t() @ found.u_OR, eye, atol=close, rtol=0)
    torch.testing.assert_close(found.v_RI @ found.v_RI.t(), eye, atol=close, rtol=0)
    assert (found.s_R >= 0).all()
    assert (found.s_R.diff() <= 0).all()


@given(o=st.integers(1, 20), i=st.integers(1, 20), r=st.integers(1, 24), scaling=st.floats(-3, 3))
@settings(deadline=None, max_examples=60)
def test_the_product_is_decomposed_without_being_built(o: int, i: int, r: int, scaling: float) -> None:
    a, b = gaussian(r, i, seed=3), gaussian(o, r, seed=4)
    found = product_svd(a, b, scaling)
    product = scaling * b @ a
    torch.testing.assert_close(found.product(), product, atol=1e-12, rtol=1e-12)
    assert found.rank == min(o, i, r)
    whole = torch.linalg.svdvals(product)[: found.rank]
    torch.testing.assert_close(found.s_R, whole, atol=1e-12, rtol=1e-10)
    assert_triplets(found)


@given(o=st.integers(1, 20), i=st.integers(1, 20), rank=st.integers(1, 22))
@settings(deadline=None, max_examples=60)
def test_a_cut_loses_the_singular_values_behind_it(o: int, i: int, rank: int) -> None:
    m = gaussian(o, i, seed=5)
    found = exact_svd(m).cut(rank)
    best = torch.linalg.svdvals(m)[rank:].norm()
    assert found.rank == min(o, i, rank)
    assert found.lost == pytest.approx(float(best), abs=1e-12)
    assert float((m - found.product()).norm()) == pytest.approx(float(best), abs=1e-12)
    assert found.norm == pytest.approx(float(m.norm()))
    assert found.energy == pytest.approx(1 - float(best / m.norm()) ** 2)
    a_RI, b_OR = found.factors()
    torch.testing.assert_close(b_OR @ a_RI, found.product())
    torch.testing.assert_close(a_RI.norm(dim=1), b_OR.norm(dim=0))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(200, 300), (240, 160)])
@pytest.mark.parametrize("rank", [1, 8, 30])
def test_the_randomized_error_is_near_the_least_possible(
    spectrum: str, shape: tuple[int, int], rank: int
) -> None:
    m = matrix(spectrum, *shape)
    found = randomized_svd(m, rank)
    least = float(torch.linalg.svdvals(m)[rank:].norm())
    assert found.rank == rank
    assert float((m - found.product()).norm()) <= 1.01 * least
    assert found.lost == pytest.approx(float((m - found.product()).norm()), rel=1e-9)
    assert 1 <= found.excess < 1.01
    assert_triplets(found)


def test_noise_is_the_hardest_spectrum_and_still_within_a_hundredth() -> None:
    m = gaussian(400, 300)
    assert randomized_svd(m, 8).lost <= 1.01 * float(torch.linalg.svdvals(m)[8:].norm())


def test_the_same_seed_gives_the_same_numbers_and_leaves_torchs_own_alone() -> None:
    m = gaussian(120, 90).float()
    state = torch.get_rng_state()
    one, two, other = (randomized_svd(m, 4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.u_OR, two.u_OR)
    assert not torch.equal(one.u_OR, other.u_OR)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_matrix_of_low_rank_is_found_to_rounding() -> None:
    m = (gaussian(300, 5) @ gaussian(5, 400, seed=1)).float()
    found = randomized_svd(m, 5)
    assert found.error < 1e-6
    assert leading_svd(m, Cut(error=1e-4)).rank == 5


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_decomposed_in_single(half: torch.dtype) -> None:
    m = matrix("power", 60, 80).to(half)
    assert randomized_svd(m, 2).s_R.dtype == torch.float32
    assert exact_svd(m).s_R.dtype == torch.float32


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_the_smallest_rank_that_keeps_the_energy(spectrum: str, share: float) -> None:
    m = matrix(spectrum, 40, 30)
    squares = torch.linalg.svdvals(m).square()
    held = squares.cumsum(0) / squares.sum()
    least = int((held >= share - 1e-12).nonzero()[0]) + 1
    assert Cut(energy=share).rank(exact_svd(m)) in (least, least + (held[least - 1] < share + 1e-12))
    error = math.sqrt(1 - share)
    assert Cut(error=error).rank(exact_svd(m)) == Cut(energy=share).rank(exact_svd(m))
    assert exact_svd(m).cut(Cut(error=error).rank(exact_svd(m))).error <= error + 1e-12


def test_all_of_the_energy_is_the_numerical_rank() -> None:
    m = gaussian(50, 3) @ gaussian(3, 40, seed=1)
    assert Cut(energy=1.0).rank(exact_svd(m)) == 3
    assert leading_svd(m, Cut(energy=1.0)).rank == 3


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_rank_grows_until_the_energy_is_reached(share: float) -> None:
    m = matrix("half power", 300, 260)
    squares = torch.linalg.svdvals(m).square()
    least = int(((squares.cumsum(0) / squares.sum()) >= share).nonzero()[0]) + 1
    found = leading_svd(m, Cut(energy=share))
    assert found.energy >= share
    assert least <= found.rank <= least + 2


def test_a_zero_matrix_has_one_empty_triplet() -> None:
    zero = torch.zeros(6, 4)
    for found in (exact_svd(zero), randomized_svd(zero, 2), product_svd(zero[:2], zero[:, :2])):
        assert (found.norm, found.error, found.energy, found.numerical_rank) == (0, 0, 1, 0)
    assert leading_svd(zero, Cut(energy=0.9)).rank == 1


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({}, "exactly one of r, energy and error; given: none"),
        ({"r": 1, "energy": 0.5}, "given: r, energy"),
        ({"r": 0}, "r is 0"),
        ({"energy": 1.5}, r"energy is 1\.5"),
        ({"error": 0.0}, r"error is 0\.0"),
    ],
)
def test_a_cut_is_one_thing(given: dict[str, float], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        Cut(**given)
