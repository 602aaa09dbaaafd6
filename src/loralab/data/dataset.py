"""A data file becomes a data set: every row of it is trained on, or kept with the reason why not."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loralab.data.chunk import check_lengths, chunk, newline_ids
from loralab.data.encode import encode_chats, encode_texts
from loralab.data.fields import Row
from loralab.data.formats import Format, check_columns, detect, get
from loralab.data.sources import read_rows
from loralab.data.templates import choose_template
from loralab.data.types import Chat, Example, Rejected, Text
from loralab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Dataset", "load_dataset"]

_TOO_LONG = "longer than cutoff_length"
_NOTHING = "with nothing to train on, as the answer or text is blank"


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a data file gives to training."""

    examples: tuple[Example, ...]
    rejected: tuple[Rejected, ...]
    format: str
    template: str
    """The name of the template, or "none" for documents, which have none."""
    tokens: int
    trained_tokens: int
    fingerprint: str
    """The sha256 of the file's bytes and the settings that made examples of it."""
    unused_columns: tuple[str, ...] = ()
    """The columns that the format does not read, sorted."""


def load_dataset(
    path: Path,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    cutoff_length: int = 512,
    overlap_length: int = 0,
    format: str = "auto",
    template: str = "auto",
) -> Dataset:
    """Return the examples of a data file.

    A document is cut into blocks of at most `cutoff_length` tokens that share `overlap_length`. Of the other
    formats, a row that is longer than `cutoff_length` or has nothing to train on is in `rejected`.

    Raises:
        ConfigError: a setting is out of range, unknown, or has no effect on this data.
        DataError: the file or a row of it is malformed, or no example is left.
    """
    check_lengths(cutoff_length, overlap_length)
    rows = list(read_rows(path))
    entry = detect(rows[0][1], rows[0][0]) if format == "auto" else get(format)
    parsed = _parse(rows, entry)
    sources = [source for source, _ in rows]
    texts = [item for item in parsed if isinstance(item, Text)]
    chats = [item for item in parsed if isinstance(item, Chat)]
    if texts:
        _refuse_template(entry, template)
        written = "none"
        encoded = encode_texts(texts, tokenizer, sources)
    else:
        _refuse_overlap(entry, overlap_length)
        chosen = choose_template(tokenizer, entry.template, template)
        written = chosen.name
        encoded = encode_chats(chats, chosen, tokenizer, sources)
    kept, rejected = _sift(rows, encoded, None if texts else cutoff_length)
    if not kept:
        _refuse_empty(path, encoded, rejected)
    examples = _cut(kept, tokenizer, cutoff_length, overlap_length) if texts else kept
    settings = [cutoff_length, overlap_length, entry.name, written]
    columns = {column for _, row in rows for column in row}
    return Dataset(
        examples=tuple(examples),
        rejected=tuple(rejected),
        format=entry.name,
        template=written,
        tokens=sum(len(example.ids) for example in examples),
        trained_tokens=sum(example.trained for example in examples),
        fingerprint=_fingerprint(path, settings),
        unused_columns=tuple(sorted(columns - {*entry.columns, *entry.optional})),
    )


def _parse(rows: Sequence[tuple[str, Row]], entry: Format) -> list[Text | Chat]:
    parsed = []
    for source, row in rows:
        check_columns(entry, row, source)
        parsed.append(entry.parse(row, source))
    return parsed


def _refuse_template(entry: Format, template: str) -> None:
    if template not in ("auto", "none"):
        raise ConfigError(
            f"template {template!r} has no effect: format '{entry.name}' is documents, which are trained as "
            "they stand; leave the template at 'auto'."
        )


def _refuse_overlap(entry: Format, overlap_length: int) -> None:
    if overlap_length:
        raise ConfigError(
            f"overlap_length {overlap_length} has no effect: only documents are cut into blocks, and format "
            f"'{entry.name}' is conversations; set it to 0."
        )


def _sift(
    rows: Sequence[tuple[str, Row]], encoded: Sequence[Example], limit: int | None
) -> tuple[list[Example], list[Rejected]]:
    """Return the examples to train on and the rows that give none; `limit` is the longest one in tokens."""
    kept: list[Example] = []
    rejected: list[Rejected] = []
    for (source, row), example in zip(rows, encoded, strict=True):
        if not example.trained:
            rejected.append(Rejected(source, _NOTHING, row))
        elif limit is not None and len(example.ids) > limit:
            rejected.append(Rejected(source, f"{_TOO_LONG} {limit}: {len(example.ids)} tokens", row))
        else:
            kept.append(example)
    return kept, rejected


def _refuse_empty(path: Path, encoded: Sequence[Example], rejected: Sequence[Rejected]) -> None:
    reasons = Counter(entry.reason.split(":")[0] for entry in rejected)
    counts = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
    shortest = min((len(example.ids) for example in encoded if example.trained), default=0)
    hint = f" The shortest has {shortest} tokens; raise cutoff_length." if shortest else ""
    raise DataError(f"{path.name}: none of {len(rejected)} rows can be trained on: {counts}.{hint}")


def _cut(
    documents: Sequence[Example],
    tokenizer: "PreTrainedTokenizerFast",
    cutoff_length: int,
    overlap_length: int,
) -> list[Example]:
    line_ends = newline_ids(tokenizer, (token for document in documents for token in document.ids))
    return [
        block
        for document in documents
        for block in chunk(document, line_ends, cutoff_length=cutoff_length, overlap_length=overlap_length)
    ]


def _fingerprint(path: Path, settings: Sequence[object]) -> str:
    digest = hashlib.sha256(path.read_bytes())
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()
