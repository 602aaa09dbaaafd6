"""A long document becomes blocks in which every token is learned exactly once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from loralab.data.chunk import Passage, check_lengths, chunk, newline_ids, passages
from loralab.data.encode import encode_text
from loralab.data.types import Example, Text
from loralab.errors import ConfigError

NEWLINE = 7


def document(total: int, newlines: set[int]) -> Example:
    """Ids that tell their place, but for the line breaks."""
    ids = tuple(NEWLINE if place in newlines else 1000 + place for place in range(total))
    return Example(ids, (0.0,) + (1.0,) * (total - 1), "tale.txt:1")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Example, int, int, int | None]:
    cutoff = draw(st.integers(2, 64))
    favor = draw(st.none() | st.integers(0, cutoff - 1))
    total = draw(st.integers(1, 300))
    newlines = draw(st.sets(st.integers(0, 299), max_size=60))
    return document(total, newlines), cutoff, draw(st.integers(0, cutoff - 1)), favor


@settings(deadline=None)
@given(cases())
def test_every_token_is_learned_once_with_the_right_context(
    case: tuple[Example, int, int, int | None],
) -> None:
    whole, cutoff, overlap, favor = case
    blocks = chunk(whole, {NEWLINE}, cutoff_length=cutoff, overlap_length=overlap, newline_favor_length=favor)
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
            assert cutoff - len(block.ids) <= (cutoff // 8 if favor is None else favor)
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


def test_how_early_a_block_may_end_can_be_said() -> None:
    whole = document(20, {3, 9})
    for favor, first in ((0, 16), (5, 16), (6, 10), (12, 10), (None, 16)):
        blocks = chunk(whole, {NEWLINE}, cutoff_length=16, newline_favor_length=favor)
        assert len(blocks[0].ids) == first
    for favor in (-1, 16):
        with pytest.raises(ConfigError, match="newline_favor_length"):
            check_lengths(16, 0, favor)


def test_a_text_is_one_passage_as_it_stands() -> None:
    assert passages("\n\nOnce\n", "", 0) == ([Passage("\n\nOnce\n", 1)], 0)
    assert passages("", "", 0) == ([Passage("", 1)], 0)


def test_a_hard_cut_makes_passages_with_their_lines() -> None:
    text = "One\ntwo\n***\n\n  Three\n***\n \n***\nfour"
    expected = ([Passage("One\ntwo", 1), Passage("  Three", 5), Passage("four", 9)], 0)
    assert passages(text, "***") == expected
    lines = text.split("\n")
    for passage in expected[0]:
        assert lines[passage.line - 1] == passage.text.split("\n")[0]


def test_escapes_are_read_as_they_are_typed() -> None:
    text = "a\n\n\nb\tc\\d"
    assert [p.text for p in passages(text, r"\n\n\n")[0]] == ["a", "b\tc\\d"]
    assert passages(text, r"\n\n\n") == passages(text, "\n\n\n")
    assert [p.text for p in passages(text, r"\t")[0]] == ["a\n\n\nb", "c\\d"]
    assert [p.text for p in passages(text, r"\\")[0]] == ["a\n\n\nb\tc", "d"]


def test_short_passages_are_counted() -> None:
    text = "long enough\n---\n  ab  \n---\n\n---\nabc"
    assert passages(text, "---", 3) == ([Passage("long enough", 1), Passage("abc", 7)], 1)
    assert passages("ab\n", "", 3) == ([], 1)
    assert passages("abc\n", "", 3) == ([Passage("abc", 1)], 0)


@settings(deadline=None)
@given(st.text(alphabet="ab \n*", max_size=60), st.integers(0, 4))
def test_nothing_but_cuts_and_blanks_is_lost(text: str, least: int) -> None:
    kept, left_out = passages(text, "**", least)
    pieces = [piece.strip("\n") for piece in text.split("**") if piece.strip()]
    assert len(kept) + left_out == (len(pieces) or 0)
    assert [p.text for p in kept] == [piece for piece in pieces if len(piece.strip()) >= max(least, 1)]
    for passage in kept:
        line = text.split("\n")[passage.line - 1]
        assert passage.text.split("\n")[0] in line


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
