"""Rows of examples: every one once, none over the width, as first-fit decreasing fills them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.data.pack import pack
from loralab.errors import ConfigError


def first_fit_decreasing(lengths: list[int], width: int) -> list[list[int]]:
    """The rule itself, in quadratic time."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fits = (row for row in rows if sum(lengths[i] for i in row) + lengths[index] <= width)
        row = next(fits, None)
        if row is None:
            row = []
            rows.append(row)
        row.append(index)
    return rows


@settings(deadline=None)
@given(st.integers(0, 50).flatmap(lambda width: st.tuples(st.lists(st.integers(0, width)), st.just(width))))
def test_rows_are_those_of_first_fit_decreasing(case: tuple[list[int], int]) -> None:
    lengths, width = case
    rows = pack(lengths, width)
    assert rows == first_fit_decreasing(lengths, width)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= width for row in rows)


def test_a_known_packing() -> None:
    assert pack([3, 7, 5, 5, 2, 8], 10) == [[5, 4], [1, 0], [2, 3]]


def test_nothing_packs_to_nothing() -> None:
    assert pack([], 8) == []


def test_a_hundred_thousand_examples_are_all_packed() -> None:
    lengths = [1 + (index * 7919) % 512 for index in range(100_000)]
    rows = pack(lengths, 512)
    assert sum(map(len, rows)) == len(lengths)
    assert sum(lengths) / (512 * len(rows)) > 0.99


@pytest.mark.parametrize("length", [9, -1])
def test_a_length_that_no_row_holds_is_refused(length: int) -> None:
    with pytest.raises(ConfigError, match=f"example 1 has {length} tokens; a row holds 8"):
        pack([4, length], 8)
