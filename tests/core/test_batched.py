"""Every kernel of many adapters in one batch against a loop over tokens in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loralab.core.batched import KERNELS, UNMEASURED, Choice, Rows, calibrate

CPU = torch.device("cpu")
INPUTS, OUTPUTS = 24, 40
RUNS = st.lists(st.tuples(st.integers(-1, 5), st.integers(1, 9)), min_size=1, max_size=8).filter(
    lambda runs: any(slot >= 0 for slot, _ in runs)
)


def make(runs: list[tuple[int, int]], rank: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    """y [T, O], x [T, I], A [S, R, I], B [S, R, O] for six slots."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(count for _, count in runs)
    shapes = (tokens, OUTPUTS), (tokens, INPUTS), (6, rank, INPUTS), (6, rank, OUTPUTS)
    y, x, a, b = (torch.randn(shape, generator=generator) for shape in shapes)
    return y.to(dtype), x.to(dtype), (a / INPUTS**0.5).to(dtype), (b / rank**0.5).to(dtype)


def loop(runs: list[tuple[int, int]], y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The same in float64, token by token."""
    result, at = y.double().clone(), 0
    for slot, count in runs:
        for token in range(at, at + count):
            if slot >= 0:
                result[token] += b[slot].double().t() @ (a[slot].double() @ x[token].double())
        at += count
    return result


def run(name: str, runs: list[tuple[int, int]], y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    rows = Rows.of(runs, CPU)
    result = y.clone()
    KERNELS[name].up(result, KERNELS[name].down(x, a[rows.slots], rows), b[rows.slots], rows)
    return result


@pytest.mark.parametrize("name", KERNELS)
@given(runs=RUNS, rank=st.sampled_from([8, 16, 32]), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_kernel_adds_what_a_loop_over_tokens_does(
    name: str, runs: list[tuple[int, int]], rank: int, seed: int
) -> None:
    y, x, a, b = make(runs, rank, torch.float32, seed)
    torch.testing.assert_close(
        run(name, runs, y, x, a, b).double(), loop(runs, y, x, a, b), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "runs",
    [
        [(3, 1)],
        [(0, 5), (2, 3), (5, 1)],
        [(5, 2), (0, 2), (5, 2), (-1, 3), (0, 1)],
        [(-1, 4), (1, 3), (2, 3), (3, 3)],
        [(-1, 4), (1, 3), (2, 3), (3, 3), (-1, 2)],
        [(1, 3), (-1, 1), (2, 3)],
        [(1, 3), (3, 3)],
        [(0, 1)] * 7 + [(4, 30)],
    ],
    ids=["one", "gaps", "unsorted", "block", "block-between", "torn", "block-with-a-gap", "uneven"],
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_layouts_that_are_easy_to_get_wrong(
    name: str, runs: list[tuple[int, int]], precision: torch.dtype
) -> None:
    y, x, a, b = make(runs, 16, precision)
    result, wanted = run(name, runs, y, x, a, b), loop(runs, y, x, a, b)
    if precision == torch.float32:
        torch.testing.assert_close(result.double(), wanted, rtol=1e-5, atol=1e-5)
    else:
        # A and B of one token: two roundings of about 2^-8 each on values of about 1.
        assert (result.double() - wanted).abs().max() < 0.05
    base = torch.cat([torch.full((count,), slot < 0) for slot, count in runs])
    assert torch.equal(result[base], y[base]), "tokens without an adapter must stay as they are, to the bit"


@pytest.mark.parametrize("name", KERNELS)
@given(runs=RUNS, seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_layers_of_one_input_share_a_product(name: str, runs: list[tuple[int, int]], seed: int) -> None:
    rows, kernel = Rows.of(runs, CPU), KERNELS[name]
    y, x, first, b = make(runs, 8, torch.float32, seed)
    _, _, second, _ = make(runs, 8, torch.float32, seed + 1)
    low = kernel.down(x, torch.cat([first, second], dim=1)[rows.slots], rows)
    for at, a in enumerate([first, second]):
        result = y.clone()
        kernel.up(result, low[..., 8 * at : 8 * (at + 1)], b[rows.slots], rows)
        torch.testing.assert_close(result.double(), loop(runs, y, x, a, b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_a_slot_that_overflows_reaches_no_other_token(name: str) -> None:
    runs = [(0, 2), (1, 3), (-1, 2), (2, 1)]
    y, x, a, b = make(runs, 8, torch.float32)
    a[1] = 3e38
    x = x.abs()
    result, wanted = run(name, runs, y, x, a, b), loop(runs, y, x, a, b)
    assert not bool(torch.isfinite(result[2:5]).all()), "the test's own slot is to overflow"
    others = [0, 1, 5, 6, 7]
    torch.testing.assert_close(result[others].double(), wanted[others], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("runs", "block"),
    [
        ([(0, 2), (1, 2)], slice(0, 4)),
        ([(-1, 3), (2, 2), (3, 2), (-1, 1)], slice(3, 7)),
        ([(4, 5)], slice(0, 5)),
        ([(4, 2), (4, 3)], slice(0, 5)),
        ([(1, 2), (0, 2)], None),
        ([(0, 2), (1, 3)], None),
        ([(0, 2), (2, 2)], None),
        ([(0, 2), (-1, 1), (1, 2)], None),
        ([(0, 2), (1, 2), (0, 2)], None),
    ],
)
def test_a_block_is_as_many_tokens_for_each_slot_side_by_side(
    runs: list[tuple[int, int]], block: slice | None
) -> None:
    assert Rows.of(runs, CPU).block == block


@given(runs=RUNS)
@settings(max_examples=100, deadline=None)
def test_rows_say_where_each_slots_tokens_are(runs: list[tuple[int, int]]) -> None:
    rows = Rows.of(runs, CPU)
    slots = [slot for slot, count in runs for _ in range(count)]
    used = sorted({slot for slot in slots if slot >= 0})
    assert rows.used == used
    assert (rows.slots.start, rows.slots.stop) == (used[0], used[-1] + 1)
    assert rows.tokens == sum(slot >= 0 for slot in slots)
    ordered = [slots[token] for token in rows.order.tolist()]
    assert ordered == sorted(slot for slot in slots if slot >= 0)
    ends = [sum(slot <= used[0] + n for slot in ordered) for n in range(rows.width)]
    assert rows.ends.tolist() == ends


def test_calibration_measures_every_kernel_and_the_choice_takes_the_fastest_nearby() -> None:
    choice = calibrate(32, 32, 8, 4, torch.float32, CPU)
    assert {slots for slots, _ in choice.seconds} == {1, 2, 4}
    assert all(set(found) == set(KERNELS) for found in choice.seconds.values())
    assert all(seconds > 0 for found in choice.seconds.values() for seconds in found.values())
    made = Choice({(1, 1): {"dense": 1.0, "grouped": 2.0}, (8, 64): {"dense": 2.0, "grouped": 1.0}})
    assert made(Rows.of([(0, 1), (1, 1)], CPU)) is KERNELS["dense"]
    assert made(Rows.of([(slot, 50) for slot in range(6)], CPU)) is KERNELS["grouped"]
    assert UNMEASURED(Rows.of([(0, 3)], CPU)) in KERNELS.values()
