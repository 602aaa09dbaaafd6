"""Data becomes a data set: every row of it is trained on, or counted with the reason why not."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralab.data.cache import Entry, Filled, cache_limit, entry_path, read_entry, write_entry
from loralab.data.examples import Builder, Examples
from loralab.data.making import Making
from loralab.data.mixture import digest_of, parse_sources, states_of
from loralab.data.pieces import Counts
from loralab.data.reading import Reading, Side
from loralab.data.types import Rejected
from loralab.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Counts", "Dataset", "Reading", "load_dataset", "load_split"]

_FACTS = ("format", "template", "tokens", "trained_tokens", "fingerprint", "duplicates")


@dataclass(frozen=True, slots=True)
class Dataset:
    """What data gives to training."""

    examples: Examples
    """Made when they are asked for, from arrays in memory or mapped into it."""
    rejected: tuple[Rejected, ...]
    """What is not trained on, and why; `row` is None of those behind the first thousand."""
    format: str
    template: str
    """The name of the template, or "none" for documents, which have none."""
    tokens: int
    trained_tokens: int
    fingerprint: str
    """The sha256 of the data's bytes and the settings that made examples of it."""
    unused_columns: tuple[str, ...] = ()
    """The columns that the format does not read, sorted."""
    cached: bool = False
    """Whether the examples are on disk, so that the next run need not make them again."""
    duplicates: int = 0
    """Rows, or passages of a text, that say the same as one before them. A weight makes none."""
    counts: tuple[Counts, ...] = ()
    """What became of the rows, for each source."""

    @property
    def rows(self) -> int:
        """The rows of all sources."""
        return sum(counts.rows for counts in self.counts)

    @property
    def used(self) -> int:
        """The rows, or passages of a text, that gave examples."""
        return sum(counts.used for counts in self.counts)

    @property
    def cut(self) -> int:
        """The rows of which only the beginning is trained on."""
        return sum(counts.cut for counts in self.counts)


def load_dataset(
    data: str | Path, tokenizer: "PreTrainedTokenizerFast", reading: Reading | None = None
) -> Dataset:
    """Return the examples of a file, of a folder, or of all that `data` names with " + " between.

    A document is cut into blocks of at most `cutoff_length` tokens that share `overlap_length`. Of the other
    formats, a row that is longer than `cutoff_length` is rejected or cut, as `too_long` says. What has
    nothing to train on is rejected.

    What was made once of the same bytes, names, settings and tokenizer is taken from the cache on disk, see
    `loralab.data.cache`. Rows are read, tokenized and put there in parts, so data may be larger than memory.

    Args:
        data: see `loralab.data.mixture`.

    Raises:
        ConfigError: a setting is out of range, unknown, or has no effect on this data; or there is an
            `eval_split`, with which `load_split` is to be called.
        DataError: the data or a row of it is malformed, or no example is left.
    """
    reading = reading or Reading()
    if reading.eval_split is not None:
        raise ConfigError("eval_split makes two data sets of one; call load_split, or leave it out.")
    return _load(data, tokenizer, reading, "all")


def load_split(
    data: str | Path, tokenizer: "PreTrainedTokenizerFast", reading: Reading
) -> tuple[Dataset, Dataset]:
    """Return what is left to train on, and what `eval_split` holds out; see `loralab.data.splitting`.

    Raises as `load_dataset`, and `DataError` where one side has no row.
    """
    if reading.eval_split is None:
        raise ConfigError("there is no eval_split; call load_dataset, or set it.")
    # The smaller side first: that it is empty should not be known only after the larger was made.
    held_out = _load(data, tokenizer, reading, "eval")
    return _load(data, tokenizer, reading, "train"), held_out


def _load(data: str | Path, tokenizer: "PreTrainedTokenizerFast", reading: Reading, side: Side) -> Dataset:
    reading.check()
    sources = parse_sources(str(data))
    states = states_of(sources)
    read_as = {**asdict(reading), "side": side, "files": _digests(reading)}
    digest = digest_of(sources)
    place = entry_path(digest, read_as, tokenizer)
    found = read_entry(place, _unpack) if place else None
    if found is not None:
        return found
    kept: list[Dataset] = []

    def make(builder: Builder) -> dict[str, Any]:
        facts = _make(Making(sources, tokenizer, reading, side), builder)
        made_with = {**read_as, "format": facts["format"], "template": facts["template"]}
        text = json.dumps([digest, made_with], sort_keys=True)
        return {**facts, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}

    def fill(folder: Path) -> Filled | None:
        builder = Builder(folder, cache_limit())
        facts = make(builder)
        shapes = builder.shapes()
        # The place is not that of a file which was written to meanwhile.
        if shapes and states_of(sources) == states:
            return Filled(shapes, facts)
        kept.append(_in_memory(builder, facts))
        return None

    found = write_entry(place, fill, _unpack) if place else None
    if found is not None or kept:
        return found or kept[0]
    builder = Builder()
    return _in_memory(builder, make(builder))


def _make(making: Making, builder: Builder) -> dict[str, Any]:
    return making.fill(builder)


def _digests(reading: Reading) -> list[str]:
    """Return the hashes of the files that settings name: a format's or a template's."""
    files = [Path(name) for name in (reading.format, reading.template) if os.path.isfile(name)]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def _in_memory(builder: Builder, facts: dict[str, Any]) -> Dataset:
    return replace(_unpack(Entry(builder.arrays(), facts)), cached=False)


def _unpack(entry: Entry) -> Dataset:
    facts: dict[str, Any] = {name: entry.facts[name] for name in _FACTS}
    return Dataset(
        examples=Examples(entry.arrays),
        rejected=tuple(Rejected(*values) for values in entry.facts["rejected"]),
        unused_columns=tuple(entry.facts["unused_columns"]),
        counts=tuple(Counts(**values) for values in entry.facts["counts"]),
        cached=True,
        **facts,
    )
