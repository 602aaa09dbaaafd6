"""A long document becomes blocks in which every token is learned exactly once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from loralab.data.chunk import check_lengths, chunk, newline_ids
from loralab.data.encode import encode_text
from loralab.data.types import Example, Text
from loralab.errors import ConfigError

NEWLINE = 7


def document(total: int, newlines: set[int]) -> Example:
    """Ids that tell their place, but for the line breaks."""
    ids = tuple(NEWLINE if place in newlines else 1000 + place for place in range(total))
    return Example(ids, (0.0,) + (1.0,) * (total - 1), "tale.txt:1")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Example, int, int]:
    cutoff = draw(st.integers(2, 64))
    total = draw(st.integers(1, 300))
    newlines = draw(st.sets(st.integers(0, 299), max_size=60))
    return document(total, newlines), cutoff, draw(st.integers(0, cutoff - 1))


@settings(deadline=None)
@given(cases())
def test_every_token_is_learned_once_with_the_right_context(case: tuple[Example, int, int]) -> None:
    whole, cutoff, overlap = case
    blocks = chunk(whole, {NEWLINE}, cutoff_length=cutoff, overlap_length=overlap)
    shared = max(overlap, 1)
    learned: list[int] = [0] * len(whole.ids)
    start = 0
    for number, block in enumerate(blocks):
        end = start + len(block.ids)
        assert len(block.ids) == len(block.weights) <= cutoff
        assert block.ids == whole.ids[start:end]
        assert block.weights[0] == 0.0
        for place, weight in enumerate(block.weights):
            learned[start + place] += weight > 0
        if number:
            assert not any(block.weights[:shared])
        last = number == len(blocks) - 1
        if not last and len(block.ids) < cutoff:
            assert block.ids[-1] == NEWLINE
            assert cutoff - len(block.ids) < cutoff // 8
        if not last:
            start = end - shared
    assert end == len(whole.ids)
    assert learned == [0] + [1] * (len(whole.ids) - 1)


def test_a_block_ends_at_the_last_line_break_of_its_last_eighth() -> None:
    blocks = chunk(document(40, {3, 13, 14, 20}), {NEWLINE}, cutoff_length=16, overlap_length=2)
    assert [len(block.ids) for block in blocks] == [15, 16, 13]
    assert [block.source for block in blocks] == [
        "tale.txt:1, tokens 1-15",
        "tale.txt:1, tokens 14-29",
        "tale.txt:1, tokens 28-40",
    ]


def test_a_short_document_is_left_as_it_is() -> None:
    short = document(16, set())
    assert chunk(short, set(), cutoff_length=16) == [short]


@pytest.mark.parametrize(("cutoff", "overlap"), [(1, 0), (16, 16), (16, 20), (16, -1), (0, 0)])
def test_lengths_that_leave_nothing_to_learn_are_refused(cutoff: int, overlap: int) -> None:
    with pytest.raises(ConfigError):
        check_lengths(cutoff, overlap)


def test_newline_ids_are_those_that_end_a_line(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "the answer\n\nthe user\nasked\n the"
    ids = encode_text(Text(text), tokenizer).ids
    ends = newline_ids(tokenizer, ids)
    found = [place for place, token in enumerate(ids) if token in ends]
    assert found
    for place, _ in enumerate(ids):
        assert tokenizer.decode(list(ids[: place + 1])).endswith("\n") == (place in found)
