"""Examples laid flat are the examples that were laid."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralab.data.examples import Examples
from loralab.data.types import Example

tokens = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.sampled_from([0.0, 1.0])), max_size=6)
sources = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def example(pairs: list[tuple[int, float]], source: str = "") -> Example:
    return Example(tuple(token for token, _ in pairs), tuple(weight for _, weight in pairs), source)


@given(st.lists(st.builds(example, tokens, sources), max_size=6))
def test_what_is_laid_comes_back(examples: list[Example]) -> None:
    flat = Examples.of(iter(examples))
    assert list(flat) == examples
    assert [one.source for one in flat] == [one.source for one in examples]
    assert flat[1:-1] == tuple(examples[1:-1])
    assert flat[::-2] == tuple(examples[::-2])
    assert flat.lengths == [len(one.ids) for one in examples]
    assert flat.tokens == sum(flat.lengths)
    assert flat.trained_tokens == sum(one.trained for one in examples)
    assert list(pickle.loads(pickle.dumps(flat))) == examples


def test_an_index_counts_from_either_end() -> None:
    flat = Examples.of([example([(1, 0.0)], "a"), example([(2, 0.0), (3, 1.0)], "b\udcff")])
    assert flat[-1] == flat[1] == example([(2, 0.0), (3, 1.0)])
    assert type(flat[1].ids[0]) is int
    assert type(flat[1].weights[0]) is float
    assert flat[1].source == "b\udcff"
    for index in (2, -3):
        with pytest.raises(IndexError):
            flat[index]


def test_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^a:1: loss weights other than 0 and 1"):
        Examples.of([example([(1, 0.0), (2, 0.5)], "a:1")])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ids", [1, 2]),
        ("trained", [0]),
        ("ends", [0, 2]),
        ("ends", [1, 1, 3]),
        ("ends", [0, 4, 3]),
        ("ends", []),
        ("source_ends", [0, 1, 3]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name: str, values: list[int]) -> None:
    arrays = Examples.of([example([(1, 0.0)], "a"), example([(2, 0.0), (3, 1.0)], "b")]).arrays
    broken = arrays | {name: np.array(values, arrays[name].dtype)}
    with pytest.raises(ValueError, match=r"of (the )?examples .* not "):
        Examples(broken)
    with pytest.raises(ValueError, match="the arrays of examples are"):
        Examples(arrays | {"ids": arrays["ids"].astype("int64")})
