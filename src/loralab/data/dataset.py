"""A data file becomes a data set: every row of it is trained on, or kept with the reason why not."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralab.data.cache import Entry, entry_path, read_entry, write_entry
from loralab.data.chunk import check_lengths, chunk, newline_ids
from loralab.data.encode import encode_chats, encode_texts
from loralab.data.examples import Examples
from loralab.data.fields import Row
from loralab.data.formats import Format, check_columns, detect, get
from loralab.data.sources import read_rows
from loralab.data.templates import choose_template
from loralab.data.types import Chat, Example, Rejected, Text
from loralab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Dataset", "load_dataset"]

_ROWS = 1024
"""Rows that are tokenized at a time. More would need more memory, and fewer leave threads without work."""
_FACTS = ("format", "template", "tokens", "trained_tokens", "fingerprint")
_TOO_LONG = "longer than cutoff_length"
_NOTHING = "with nothing to train on, as the answer or text is blank"


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a data file gives to training."""

    examples: Examples
    """Made when they are asked for, from arrays in memory or mapped into it."""
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
    cached: bool = False
    """Whether the examples are on disk, so that the next run need not make them again."""


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a data file is read with, as the user named it."""

    cutoff_length: int
    overlap_length: int
    format: str
    template: str


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

    What was made once of the same bytes, name, settings and tokenizer is taken from the cache on disk, see
    `loralab.data.cache`.

    Raises:
        ConfigError: a setting is out of range, unknown, or has no effect on this data.
        DataError: the file or a row of it is malformed, or no example is left.
    """
    check_lengths(cutoff_length, overlap_length)
    settings = _Settings(cutoff_length, overlap_length, format, template)
    file = _identify(path)
    place = entry_path(file, asdict(settings), tokenizer) if file else None
    data = read_entry(place, _unpack) if place else None
    if data is None:
        data = _make(path, tokenizer, settings)
        # The place is not that of a file which was written to meanwhile.
        if place and _identify(path) == file:
            data = write_entry(place, _pack(data), _unpack) or data
    return data


def _make(path: Path, tokenizer: "PreTrainedTokenizerFast", settings: _Settings) -> Dataset:
    rows = list(read_rows(path))
    entry = detect(rows[0][1], rows[0][0]) if settings.format == "auto" else get(settings.format)
    parsed = _parse(rows, entry)
    sources = [source for source, _ in rows]
    texts = [item for item in parsed if isinstance(item, Text)]
    chats = [item for item in parsed if isinstance(item, Chat)]
    if texts:
        _refuse_template(entry, settings.template)
        chosen, limit = None, None
    else:
        _refuse_overlap(entry, settings.overlap_length)
        chosen, limit = choose_template(tokenizer, entry.template, settings.template), settings.cutoff_length
    written = chosen.name if chosen else "none"

    def encode(part: slice) -> list[Example]:
        if chosen is None:
            return encode_texts(texts[part], tokenizer, sources[part])
        return encode_chats(chats[part], chosen, tokenizer, sources[part])

    sieve = _Sieve(limit)
    parts = (slice(start, start + _ROWS) for start in range(0, len(rows), _ROWS))
    kept = sieve.sift(rows, (example for part in parts for example in encode(part)))
    examples = Examples.of(_cut(kept, tokenizer, settings) if texts else kept)
    if not len(examples):
        _refuse_empty(path, sieve)
    columns = {column for _, row in rows for column in row}
    made_with = [settings.cutoff_length, settings.overlap_length, entry.name, written]
    return Dataset(
        examples=examples,
        rejected=tuple(sieve.rejected),
        format=entry.name,
        template=written,
        tokens=examples.tokens,
        trained_tokens=examples.trained_tokens,
        fingerprint=_fingerprint(path, made_with),
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


@dataclass
class _Sieve:
    """Lets through the examples to train on, and keeps the rows that give none."""

    limit: int | None
    """The tokens of the longest one that is trained on, if there is a limit."""
    rejected: list[Rejected] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)
    """The tokens of those over the limit."""

    def sift(self, rows: Iterable[tuple[str, Row]], encoded: Iterable[Example]) -> Iterator[Example]:
        for (source, row), example in zip(rows, encoded, strict=True):
            tokens = len(example.ids)
            if not any(example.weights):
                self.rejected.append(Rejected(source, _NOTHING, row))
            elif self.limit is not None and tokens > self.limit:
                self.rejected.append(Rejected(source, f"{_TOO_LONG} {self.limit}: {tokens} tokens", row))
                self.too_long.append(tokens)
            else:
                yield example


def _refuse_empty(path: Path, sieve: _Sieve) -> None:
    reasons = Counter(entry.reason.split(":")[0] for entry in sieve.rejected)
    counts = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
    shortest = min(sieve.too_long, default=0)
    hint = f" The shortest has {shortest} tokens; raise cutoff_length." if shortest else ""
    raise DataError(f"{path.name}: none of {len(sieve.rejected)} rows can be trained on: {counts}.{hint}")


def _cut(
    documents: Iterable[Example], tokenizer: "PreTrainedTokenizerFast", settings: _Settings
) -> Iterator[Example]:
    asked: set[int] = set()
    line_ends: set[int] = set()
    cutoff, overlap = settings.cutoff_length, settings.overlap_length
    for document in documents:
        if len(document.ids) > cutoff:
            new = set(document.ids) - asked
            line_ends |= newline_ids(tokenizer, new)
            asked |= new
        yield from chunk(document, line_ends, cutoff_length=cutoff, overlap_length=overlap)


def _fingerprint(path: Path, settings: Sequence[object]) -> str:
    digest = hashlib.sha256(path.read_bytes())
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()


def _identify(path: Path) -> str | None:
    """Return the file's name, which is in every source, and the hash of its bytes; None if it has none."""
    try:
        return f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.name}"
    except (OSError, ValueError):
        return None


def _pack(data: Dataset) -> Entry:
    facts: dict[str, Any] = {name: getattr(data, name) for name in _FACTS}
    # A row is written as it came: it was JSON.
    rejected = [(entry.source, entry.reason, entry.row) for entry in data.rejected]
    facts |= {"rejected": rejected, "unused_columns": data.unused_columns}
    return Entry(data.examples.arrays, facts)


def _unpack(entry: Entry) -> Dataset:
    facts: dict[str, Any] = {name: entry.facts[name] for name in _FACTS}
    return Dataset(
        examples=Examples(entry.arrays),
        rejected=tuple(Rejected(*values) for values in entry.facts["rejected"]),
        unused_columns=tuple(entry.facts["unused_columns"]),
        cached=True,
        **facts,
    )
