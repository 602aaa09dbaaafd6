"""An example as a person can read it: what the model sees, what it learns, and which tokens are special."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from loralab.data.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Piece", "preview"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring tokens that are alike: `trained` have a loss weight, `special` are marks, not text."""

    text: str
    trained: bool
    special: bool


def preview(example: Example, tokenizer: "PreTrainedTokenizerFast") -> list[Piece]:
    """Return the example as pieces whose texts, joined, are what its ids decode to.

    A character whose bytes lie in two pieces shows as U+FFFD in each.
    """
    special = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    special.update(tokenizer.all_special_ids)
    kinds = [
        (weight != 0, token in special) for token, weight in zip(example.ids, example.weights, strict=True)
    ]
    pieces = []
    start = 0
    for (trained, is_special), run in groupby(kinds):
        end = start + len(list(run))
        pieces.append(Piece(_decode_between(example.ids, start, end, tokenizer), trained, is_special))
        start = end
    return pieces


def _decode_between(ids: Sequence[int], start: int, end: int, tokenizer: "PreTrainedTokenizerFast") -> str:
    # By itself a piece may lose the space before its first word, so it is what it adds to the text before it.
    before, both = (_decode(ids[:stop], tokenizer) for stop in (start, end))
    return both[len(before) :] if both.startswith(before) else _decode(ids[start:end], tokenizer)


def _decode(ids: Sequence[int], tokenizer: "PreTrainedTokenizerFast") -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
