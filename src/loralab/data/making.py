"""The one pass over the rows in which they become examples, in parts that fit memory."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from loralab.data.chunk import chunk, newline_ids
from loralab.data.encode import encode_chats, encode_texts
from loralab.data.examples import Builder
from loralab.data.fields import Row
from loralab.data.formats import Format, check_columns, choose_format
from loralab.data.mixture import Source
from loralab.data.naming import Renaming
from loralab.data.pieces import Counts, Piece, divide, in_parts
from loralab.data.reading import Reading, Side
from loralab.data.splitting import content_of, fraction_of, held_out_blocks, number_of
from loralab.data.templates import Template, choose_template
from loralab.data.types import Chat, Example, Rejected, Text
from loralab.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Making"]

_KEPT = 1000
"""Rejected rows that are kept whole. Of more, only where they stand and why, lest they fill the memory."""
_TOO_LONG = "longer than cutoff_length"
_NOTHING = "with nothing to train on, as the answer or text is blank"
_CUT_AWAY = "with nothing to train on within cutoff_length"


@dataclass
class Making:
    """Makes examples of the rows of sources, and counts what becomes of them."""

    sources: Sequence[Source]
    tokenizer: "PreTrainedTokenizerFast"
    reading: Reading
    side: Side
    format: Format | None = None
    template: Template | None = None
    counts: list[Counts] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    contents: "array[int]" = field(default_factory=lambda: array("Q"))
    """A hash of what each piece says."""
    shortest_too_long: int = 0
    nearest: float = 1.0
    """The smallest `eval_split` that holds out something."""
    _place: str = ""
    _asked: set[int] = field(default_factory=set)
    _line_ends: set[int] = field(default_factory=set)

    def fill(self, builder: Builder) -> dict[str, Any]:
        """Lay the examples of all rows, and return what there is to say about them, as JSON values.

        Raises:
            ConfigError: a setting is unknown, or has no effect on this data.
            DataError: the data or a row of it is malformed, or no example is left.
        """
        pieces, alone = self._look_ahead(self._pieces())
        for part in in_parts(self._take(pieces, alone=alone)):
            for piece, example in zip(part, self._encode(part), strict=True):
                blocks = self._blocks(piece, example, alone=alone)
                piece.counts.used += bool(blocks)
                copies = min(piece.copies, 1) if self.side == "eval" else piece.copies
                for block in blocks * copies:
                    builder.add(block)
        if not builder.examples:
            self._refuse_empty()
        return self._facts(builder)

    def _pieces(self) -> Iterator[Piece]:
        """Yield what is trained on, and validated on, piece by piece."""
        reading = self.reading
        renaming = Renaming(reading.renames())
        place = ""
        for source in self.sources:
            unread = source.kind.unread(source.path)
            counts = Counts(source.name, weight=source.weight, unread=unread)
            self.counts.append(counts)
            for place, found, copies in source.read():
                counts.rows += 1
                row = renaming.apply(found, place)
                if self.format is None:
                    self.format = self._decide(row, place, renaming)
                self.columns.update(row)
                check_columns(self.format, row, place)
                if copies:
                    item = self.format.parse(row, place)
                    piece = Piece(counts, place, place, row, item, content_of(item), copies)
                    yield from divide(piece, reading.hard_cut_string, reading.min_chars)
        renaming.check_seen("the data")

    def _decide(self, row: Row, place: str, renaming: Renaming) -> Format:
        """Let the first row decide what all are, and hold the settings to it."""
        reading = self.reading
        try:
            found = choose_format(reading.format, row, place)
        except DataError:
            renaming.check_seen(place)
            raise
        documents = isinstance(found.parse(row, place), Text)
        reading.refuse_useless(found.name, documents=documents)
        if not documents:
            self.template = choose_template(self.tokenizer, found.template, reading.template)
        return found

    def _look_ahead(self, pieces: Iterator[Piece]) -> tuple[Iterator[Piece], bool]:
        """Return the same pieces, and whether the data is a single passage that is to be split."""
        first: list[Piece] = []
        long = 0
        while self.reading.eval_split is not None and long < 2:
            piece = next(pieces, None)
            if piece is None:
                break
            first.append(piece)
            long += not piece.short
        alone = long == 1 and isinstance(first[0].item, Text)
        return chain(first, pieces), alone

    def _take(self, pieces: Iterable[Piece], *, alone: bool) -> Iterator[Piece]:
        """Yield the pieces of this side, but for the short ones."""
        for piece in pieces:
            if not self._is_ours(piece) and not (alone and not piece.short):
                continue
            piece.counts.passages += 1
            piece.counts.drawn += piece.place != self._place
            self._place = piece.place
            self.contents.append(number_of(piece.content, "content"))
            if piece.short:
                least, found = self.reading.min_chars, len(piece.content.strip())
                self._reject(piece, f"shorter than min_chars {least}: {found} characters")
            else:
                yield piece

    def _is_ours(self, piece: Piece) -> bool:
        """Return whether it is on this side of the split, if there is one."""
        share = self.reading.eval_split
        if share is None or self.side == "all":
            return True
        fraction = fraction_of(piece.content, "split")
        self.nearest = min(self.nearest, fraction)
        return (fraction < share) is (self.side == "eval")

    def _reject(self, piece: Piece, reason: str) -> None:
        piece.counts.rejected += 1
        row = piece.row if len(self.rejected) < _KEPT else None
        self.rejected.append(Rejected(piece.source, reason, row))

    def _encode(self, part: Sequence[Piece]) -> list[Example]:
        sources = [piece.source for piece in part]
        reading = self.reading
        if self.template is None:
            texts = [piece.item for piece in part if isinstance(piece.item, Text)]
            return encode_texts(
                texts, self.tokenizer, sources, add_bos=reading.add_bos, add_eos=reading.add_eos
            )
        chats = [piece.item for piece in part if isinstance(piece.item, Chat)]
        last_only = reading.train_on == "last-answer"
        return encode_chats(chats, self.template, self.tokenizer, sources, last_only=last_only)

    def _blocks(self, piece: Piece, example: Example, *, alone: bool) -> list[Example]:
        """Return what is trained on of a piece; none if it is rejected."""
        if not any(example.weights):
            self._reject(piece, _NOTHING)
            return []
        if self.template is not None:
            return self._fit(piece, example)
        blocks = self._chunk(example)
        if alone:
            held_out = held_out_blocks(len(blocks), self.reading.eval_split or 0.0, piece.source)
            return blocks[-held_out:] if self.side == "eval" else blocks[:-held_out]
        return blocks

    def _fit(self, piece: Piece, example: Example) -> list[Example]:
        tokens, limit = len(example.ids), self.reading.cutoff_length
        if tokens <= limit:
            return [example]
        if self.reading.too_long == "drop":
            self._reject(piece, f"{_TOO_LONG} {limit}: {tokens} tokens")
            self.shortest_too_long = min(self.shortest_too_long or tokens, tokens)
            return []
        if not any(example.weights[:limit]):
            self._reject(piece, f"{_CUT_AWAY} {limit}")
            return []
        piece.counts.cut += 1
        return [Example(example.ids[:limit], example.weights[:limit], example.source)]

    def _chunk(self, document: Example) -> list[Example]:
        reading = self.reading
        if len(document.ids) > reading.cutoff_length:
            new = set(document.ids) - self._asked
            self._line_ends |= newline_ids(self.tokenizer, new)
            self._asked |= new
        return chunk(
            document,
            self._line_ends,
            cutoff_length=reading.cutoff_length,
            overlap_length=reading.overlap_length,
            newline_favor_length=reading.newline_favor_length,
        )

    def _refuse_empty(self) -> None:
        name = " + ".join(counts.name for counts in self.counts)
        if not self.contents and self.side != "all":
            raise DataError(f"{name}: {self._explain_side()}")
        if not self.contents:
            raise DataError(f"{name}: the weight leaves none of its rows; raise it, or leave it out.")
        reasons = Counter(entry.reason.split(":")[0] for entry in self.rejected)
        counts = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
        shortest = self.shortest_too_long
        hint = f" The shortest has {shortest} tokens; raise cutoff_length." if shortest else ""
        raise DataError(f"{name}: none of {len(self.rejected)} rows can be trained on: {counts}.{hint}")

    def _explain_side(self) -> str:
        if self.side == "train":
            return "eval_split leaves no row to train on; add rows, or give eval_data."
        least = math.ceil(self.nearest * 1000 + 1e-9) / 1000
        more = f"raise it to {least:g}" if least <= 0.5 else "add rows"
        return (
            f"eval_split {self.reading.eval_split:g} holds out no row, as which ones is drawn by their hash; "
            f"{more}, or give eval_data."
        )

    def _facts(self, builder: Builder) -> dict[str, Any]:
        if self.format is None:
            raise DataError("the data has no rows.")
        unused = self.columns - {*self.format.columns, *self.format.optional}
        distinct = np.unique(np.frombuffer(self.contents, "uint64"))
        return {
            "format": self.format.name,
            "template": self.template.name if self.template else "none",
            "tokens": builder.tokens,
            "trained_tokens": builder.trained_tokens,
            "duplicates": len(self.contents) - len(distinct),
            "unused_columns": sorted(unused),
            "rejected": [(entry.source, entry.reason, entry.row) for entry in self.rejected],
            "counts": [asdict(counts) for counts in self.counts],
        }
