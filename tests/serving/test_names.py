"""What a request may call a model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.serving.errors import BadRequest
from loralab.serving.names import canonical, parse

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("a", [("a", 1.0)]),
        ("a:0.7+b:0.3", [("a", 0.7), ("b", 0.3)]),
        ("a + b", [("a", 1.0), ("b", 1.0)]),
        ("a:-1e-3", [("a", -0.001)]),
        ("a:0", [("a", 0.0)]),
        ("a:b", [("a:b", 1.0)]),
    ],
)
def test_stacks(model: str, parts: list[tuple[str, float]]) -> None:
    assert parse(model) == parts


@pytest.mark.parametrize("model", ["", "+", "a+", "a+a", "a:1+a:2", "a:inf", "a:nan", ":1", "a++b"])
def test_what_makes_no_sense_is_refused(model: str) -> None:
    with pytest.raises(BadRequest):
        parse(model)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(NAMES, st.floats(allow_nan=False, allow_infinity=False)),
        min_size=1,
        max_size=4,
        unique_by=lambda part: part[0],
    )
)
def test_the_one_way_to_write_a_stack_means_the_same(parts: list[tuple[str, float]]) -> None:
    assert parse(canonical(parts)) == parts


@given(st.text(max_size=30))
def test_any_text_is_a_stack_or_refused(text: str) -> None:
    try:
        parts = parse(text)
    except BadRequest:
        return
    assert parts
    assert all(name for name, _ in parts)
