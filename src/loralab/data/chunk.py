"""A document that is longer than a row becomes blocks, each of whose tokens is learned exactly once."""

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

from loralab.data.types import Example
from loralab.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Passage", "check_lengths", "chunk", "newline_ids", "passages"]

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


class Passage(NamedTuple):
    """A piece of a text that has nothing to do with the others."""

    text: str
    line: int
    """The line on which it begins, counted from 1."""


def passages(text: str, hard_cut_string: str = "", min_chars: int = 0) -> tuple[list[Passage], int]:
    r"""Return the passages between which `hard_cut_string` stands, and the number of those left out.

    A passage neither begins nor ends with a line break. A blank one is none; one of fewer than `min_chars`,
    white space around it not counted, is left out. Without either setting the text is one passage, as it is.

    Args:
        hard_cut_string: ``\n``, ``\t``, ``\r`` and ``\\`` in it may be written as on a command line.
    """
    if not hard_cut_string and not min_chars:
        return [Passage(text, 1)], 0
    cut = re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], hard_cut_string)
    kept, left_out, line = [], 0, 1
    for piece in text.split(cut) if cut else [text]:
        body = piece.strip("\r\n")
        begins = line + piece[: piece.find(body)].count("\n")
        line += piece.count("\n") + cut.count("\n")
        if len(body.strip()) < max(min_chars, 1):
            left_out += bool(body.strip())
        else:
            kept.append(Passage(body, begins))
    return kept, left_out


def check_lengths(cutoff_length: int, overlap_length: int, newline_favor_length: int | None = None) -> None:
    """Check the settings of `chunk` against each other.

    Raises:
        ConfigError: a block could not hold a token to learn.
    """
    if cutoff_length < 2:
        raise ConfigError(
            f"cutoff_length must be at least 2 (a token and one to predict), found {cutoff_length}."
        )
    if overlap_length < 0:
        raise ConfigError(f"overlap_length must not be negative, found {overlap_length}.")
    if overlap_length >= cutoff_length:
        raise ConfigError(
            f"overlap_length {overlap_length} must be smaller than cutoff_length {cutoff_length}, "
            "or a block brings nothing new."
        )
    if newline_favor_length is not None and not 0 <= newline_favor_length < cutoff_length:
        raise ConfigError(
            f"newline_favor_length {newline_favor_length} must be from 0 to less than cutoff_length "
            f"{cutoff_length}: it is the tokens that a block may lack at its end."
        )


def chunk(
    document: Example,
    line_ends: Collection[int],
    *,
    cutoff_length: int,
    overlap_length: int = 0,
    newline_favor_length: int | None = None,
) -> list[Example]:
    """Return the document as blocks of at most `cutoff_length` tokens.

    A later block begins with the last `overlap_length` tokens of the one before, as context with weight 0. At
    least one token is shared: a block's first token has nothing to be predicted from, and would otherwise
    never be learned. A block ends up to `newline_favor_length` tokens early, behind the last token of
    `line_ends` among them, if there is one, so that the next block's new tokens begin with a line.

    Args:
        newline_favor_length: an eighth of `cutoff_length` if None; 0 fills every block.

    Raises:
        ConfigError: a block could not hold a token to learn.
    """
    check_lengths(cutoff_length, overlap_length, newline_favor_length)
    total = len(document.ids)
    if total <= cutoff_length:
        return [document]
    shared = max(overlap_length, 1)
    favor = cutoff_length // 8 if newline_favor_length is None else newline_favor_length
    blocks = []
    start = end = 0
    while end < total:
        context = end - start
        stop = min(start + cutoff_length, total)
        if stop < total:
            earliest = max(stop - favor, start + shared + 1)
            lines = (cut for cut in range(stop, earliest - 1, -1) if document.ids[cut - 1] in line_ends)
            stop = next(lines, stop)
        weights = (0.0,) * context + document.weights[end:stop]
        source = f"{document.source}, tokens {start + 1}-{stop}"
        blocks.append(Example(document.ids[start:stop], weights, source))
        start, end = stop - shared, stop
    return blocks


def newline_ids(tokenizer: "PreTrainedTokenizerFast", ids: Iterable[int]) -> frozenset[int]:
    """Return those of `ids` whose text, decoded by itself, ends with a line break.

    This asks the vocabulary rather than the offsets of one text, so that it holds for byte tokens too, and no
    offsets need to be kept for a million tokens.
    """
    distinct = sorted(set(ids))
    texts = tokenizer.batch_decode([[token] for token in distinct], clean_up_tokenization_spaces=False)
    return frozenset(token for token, text in zip(distinct, texts, strict=True) if text.endswith("\n"))
