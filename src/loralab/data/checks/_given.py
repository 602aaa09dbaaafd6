"""What the checks look at, computed when the first of them asks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loralab.data.dataset import Dataset
from loralab.data.encode import stop_ids
from loralab.data.examples import Examples
from loralab.data.templates import Template, choose_template
from loralab.data.types import Chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Given", "Table", "share"]

Array = NDArray[Any]

_SAMPLE = 500
"""Examples that are decoded, spread over the data: to decode all would take longer than all other checks."""


def share(count: int, total: int) -> str:
    """Return a count in words: "3 of 40 (7.5 %)"."""
    return f"{count:,} of {total:,} ({100 * count / max(total, 1):.3g} %)"


class Table:
    """The examples as columns: one number for each. Shape key: N examples, T tokens of all."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        arrays = examples.arrays
        self.ids_T: Array = arrays["ids"]
        self.trained_T: Array = arrays["trained"].astype(bool)
        self.starts_N: Array = arrays["ends"][:-1]
        self.ends_N: Array = arrays["ends"][1:]

    def __len__(self) -> int:
        return len(self.starts_N)

    @cached_property
    def lengths_N(self) -> Array:
        """The tokens of each example."""
        return np.asarray(self.ends_N - self.starts_N)

    @cached_property
    def answers(self) -> tuple[Array, Array]:
        """The trained tokens, and where among them those of each example end, with a 0 before: [N + 1]."""
        before = np.concatenate([[0], np.cumsum(self.trained_T)])
        ends: Array = before[self.examples.arrays["ends"]]
        return self.ids_T[self.trained_T], ends

    @cached_property
    def prompt_ends_N(self) -> Array:
        """Where in all tokens the first trained one of each example stands, or its end if it has none."""
        places = np.append(np.flatnonzero(self.trained_T), len(self.ids_T))
        return np.asarray(np.minimum(places[np.searchsorted(places, self.starts_N)], self.ends_N))

    @cached_property
    def rows(self) -> list[int]:
        """A hash of each example's ids."""
        return _hashes(self.ids_T, self.starts_N, self.ends_N)

    @cached_property
    def prompts(self) -> list[int]:
        """A hash of the ids of each example up to the first trained one."""
        return _hashes(self.ids_T, self.starts_N, self.prompt_ends_N)

    @cached_property
    def answer_hashes(self) -> list[int]:
        """A hash of each example's trained ids."""
        ids, ends = self.answers
        return _hashes(ids, ends[:-1], ends[1:])

    def sources(self, picked: Iterable[int] | None = None) -> list[str]:
        """Return where the first few of these examples come from, or all of them."""
        numbers = range(len(self)) if picked is None else islice(picked, 3)
        ends, text = self.examples.arrays["source_ends"], self.examples.arrays["sources"].tobytes()
        return [text[ends[number] : ends[number + 1]].decode("utf8", "replace") for number in numbers]

    def with_token(self, wanted: Array) -> Array:
        """Return which examples have a token at which `wanted`, a mask over all tokens, is true: [N]."""
        before = np.concatenate([[0], np.cumsum(wanted)])
        return np.asarray(before[self.ends_N] > before[self.starts_N])


def _hashes(ids: Array, starts: Array, ends: Array) -> list[int]:
    pairs = zip(starts.tolist(), ends.tolist(), strict=True)
    return [hash(ids[start:end].tobytes()) for start, end in pairs]


@dataclass(frozen=True)
class Given:
    """The data, the tokenizer and what follows from them."""

    data: Dataset
    tokenizer: "PreTrainedTokenizerFast"
    eval_data: Dataset | None = None
    conversations: Sequence[tuple[str, Chat]] = ()

    @property
    def documents(self) -> bool:
        """Whether the examples are documents, trained as they stand."""
        return self.data.template == "none"

    @cached_property
    def train(self) -> Table:
        """The training examples."""
        return Table(self.data.examples)

    @cached_property
    def validation(self) -> Table | None:
        """The validation examples, if there are any."""
        return Table(self.eval_data.examples) if self.eval_data else None

    @cached_property
    def template(self) -> Template | None:
        """What conversations are written with; None for documents."""
        return None if self.documents else choose_template(self.tokenizer, "plain", self.data.template)

    @cached_property
    def stops(self) -> list[int]:
        """The ids at which generation ends."""
        if self.template is not None:
            return stop_ids(self.template, self.tokenizer)
        end = self.tokenizer.eos_token_id
        return [] if end is None else [end]

    @cached_property
    def vocabulary(self) -> tuple[Array, list[str]]:
        """The ids that occur in the training data, and the text of each by itself."""
        found = np.unique(self.train.ids_T)
        texts = self.tokenizer.batch_decode(found[:, None].tolist(), clean_up_tokenization_spaces=False)
        return found, texts

    @cached_property
    def sample(self) -> tuple[Array, list[str]]:
        """Examples spread over the data, by number, and the text of each."""
        numbers = np.unique(np.linspace(0, len(self.train) - 1, min(_SAMPLE, len(self.train))).astype(int))
        spans = zip(self.train.starts_N[numbers], self.train.ends_N[numbers], strict=True)
        ids = [self.train.ids_T[start:end].tolist() for start, end in spans]
        return numbers, self.tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
