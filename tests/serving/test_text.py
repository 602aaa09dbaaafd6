"""Tokens into text as they come: the same text as of all at once, and nothing of a stop text."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from loralab.serving.text import TextStream

WORDS = ["<unk>", "▁the", "▁a", "dog", "s", "▁", "é", "▁日", "本"]


@pytest.fixture(scope="module")
def bytewise(tiny: Any) -> Any:
    """A byte-level BPE, as GPT-2's and Llama 3's are."""
    return tiny.make_tokenizer()


@pytest.fixture(scope="module")
def pieces() -> Any:
    """Pieces with spaces as "▁" and single bytes for what has none, as Llama 2's and Gemma's are."""
    names = [*WORDS, *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE({name: n for n, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    made = Tokenizer(model)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def stream(tokenizer: Any, ids: list[int], stops: tuple[str, ...] = ()) -> tuple[list[str], str, bool]:
    text = TextStream(tokenizer, stops)
    parts = []
    for token in ids:
        parts.append(text.push(token))
        if text.ended:
            break
    return parts, text.rest(), text.ended


def whole(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


@given(ids=st.lists(st.integers(0, 299), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_tokens_give_the_text_that_they_give_at_once(bytewise: Any, ids: list[int]) -> None:
    parts, rest, _ = stream(bytewise, ids)
    assert "".join(parts) + rest == whole(bytewise, ids)


@given(text=st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_characters_of_many_tokens_come_whole(bytewise: Any, text: str) -> None:
    ids = bytewise(text)["input_ids"]
    parts, rest, _ = stream(bytewise, ids)
    assert "".join(parts) + rest == whole(bytewise, ids)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)
        assert rest == ""


@given(
    words=st.lists(
        st.one_of(st.integers(1, len(WORDS) - 1), st.sampled_from("é€😀日\n ñ\x00")), min_size=0, max_size=30
    )
)
@settings(max_examples=300, deadline=None)
def test_bytes_that_stand_for_characters_come_whole(pieces: Any, words: list[int | str]) -> None:
    ids = []
    for word in words:
        ids += [word] if isinstance(word, int) else [len(WORDS) + byte for byte in word.encode()]
    parts, rest, _ = stream(pieces, ids)
    assert "".join(parts) + rest == whole(pieces, ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


def test_the_real_tokenizer_of_a_small_llama(stories_model_dir: Any) -> None:
    from loralab.models.load import load_tokenizer

    tokenizer = load_tokenizer(str(stories_model_dir))
    for text in ("Once upon a time, there was a dog.", "  two  spaces\n\nnew lines", "naïve 日本 😀 ok"):
        ids = tokenizer(text)["input_ids"]
        parts, rest, _ = stream(tokenizer, ids)
        assert "".join(parts) + rest == whole(tokenizer, ids)


def test_half_a_character_is_held_back_and_comes_at_the_end(bytewise: Any) -> None:
    ids = bytewise("a😀")["input_ids"][:-1]
    parts, rest, _ = stream(bytewise, ids)
    assert "".join(parts) == "a"
    assert rest == whole(bytewise, ids)[1:] != ""


@given(
    text=st.text("abc ", max_size=25),
    stops=st.lists(st.text("abc ", min_size=1, max_size=4), min_size=1, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_an_answer_ends_before_the_first_stop_text(bytewise: Any, text: str, stops: list[str]) -> None:
    ids = [bytewise.convert_tokens_to_ids("Ġ" if letter == " " else letter) for letter in text]
    parts, rest, ended = stream(bytewise, ids, tuple(stops))
    # The first stop text to be complete ends it; of those that are complete with one token, the earliest.
    ends = [n for n in range(1, len(text) + 1) if any(stop in text[:n] for stop in stops)]
    assert ended == bool(ends)
    if ends:
        seen = text[: ends[0]]
        wanted = seen[: min(at for stop in stops if (at := seen.find(stop)) >= 0)]
    else:
        wanted = text
    assert "".join(parts) + rest == wanted


def test_what_may_become_a_stop_text_waits_and_comes_when_it_does_not(bytewise: Any) -> None:
    text = TextStream(bytewise, ("cab",))
    letters = [bytewise.convert_tokens_to_ids(letter) for letter in "acacb"]
    assert [text.push(token) for token in letters] == ["a", "", "", "ca", "cb"]
    assert text.rest() == ""
    text = TextStream(bytewise, ("cab",))
    assert [text.push(token) for token in letters[:3]] == ["a", "", ""]
    assert text.rest() == "ca"


def test_two_stop_texts_in_one_token_end_it_at_the_earlier(bytewise: Any) -> None:
    (token,) = (n for n in range(300) if whole(bytewise, [n]) == "lit")
    text = TextStream(bytewise, ("t", "it"))
    assert (text.push(token), text.ended, text.rest()) == ("l", True, "")
    assert text.push(token) == ""
