"""A document that is longer than a row becomes blocks, each of whose tokens is learned exactly once."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from loralab.data.types import Example
from loralab.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["check_lengths", "chunk", "newline_ids"]


def check_lengths(cutoff_length: int, overlap_length: int) -> None:
    """Check the two settings against each other.

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


def chunk(
    document: Example, line_ends: Collection[int], *, cutoff_length: int, overlap_length: int = 0
) -> list[Example]:
    """Return the document as blocks of at most `cutoff_length` tokens.

    A later block begins with the last `overlap_length` tokens of the one before, as context with weight 0. At
    least one token is shared: a block's first token has nothing to be predicted from, and would otherwise
    never be learned. A block ends early, behind the last token of `line_ends` in its last eighth, if there is
    one, so that the next block's new tokens begin with a line.

    Raises:
        ConfigError: a block could not hold a token to learn.
    """
    check_lengths(cutoff_length, overlap_length)
    total = len(document.ids)
    if total <= cutoff_length:
        return [document]
    shared = max(overlap_length, 1)
    blocks = []
    start = end = 0
    while end < total:
        context = end - start
        stop = min(start + cutoff_length, total)
        if stop < total:
            earliest = max(stop - cutoff_length // 8, start + shared) + 1
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
