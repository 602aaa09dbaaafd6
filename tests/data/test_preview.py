"""A person sees what the model sees."""

from itertools import pairwise

from transformers import PreTrainedTokenizerFast

from loralab.data.encode import encode_chat, encode_text
from loralab.data.preview import Piece, preview
from loralab.data.templates import choose_template, names
from loralab.data.types import Chat, Example, Message, Text

CHAT = Chat(
    (
        Message("user", "Hi 猫"),
        Message("assistant", "Yes é"),
        Message("user", "?"),
        Message("assistant", "No"),
    )
)


def test_pieces_joined_are_the_decoded_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    for name in names():
        example = encode_chat(CHAT, choose_template(tokenizer, "plain", name), tokenizer)
        pieces = preview(example, tokenizer)
        assert "".join(piece.text for piece in pieces) == tokenizer.decode(list(example.ids))
        trained = "".join(piece.text for piece in pieces if piece.trained)
        lead = " " if name in ("vicuna", "mistral") else ""
        assert trained == f"{lead}Yes é{tokenizer.eos_token}{lead}No{tokenizer.eos_token}"
        alike = [(piece.trained, piece.special) for piece in pieces]
        assert all(one != next_one for one, next_one in pairwise(alike))


def test_special_tokens_show(stories: PreTrainedTokenizerFast) -> None:
    assert preview(encode_text(Text("Once upon"), stories), stories) == [
        Piece("<s>", trained=False, special=True),
        Piece(" Once upon", trained=True, special=False),
        Piece("</s>", trained=True, special=True),
    ]


def test_a_character_cut_in_two_is_shown_as_such(chatml: PreTrainedTokenizerFast) -> None:
    ids = tuple(chatml("a猫b")["input_ids"])
    pieces = preview(Example(ids, (0.0, 0.0, 1.0, 1.0, 1.0)), chatml)
    assert [piece.text.count("\ufffd") > 0 for piece in pieces] == [True, True]
    assert (pieces[0].text[0], pieces[1].text[-1]) == ("a", "b")


def test_an_empty_example_shows_nothing(chatml: PreTrainedTokenizerFast) -> None:
    assert preview(Example((), ()), chatml) == []
