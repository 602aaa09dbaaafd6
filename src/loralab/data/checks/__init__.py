"""Checks of a data set before anything is trained on it: one file a family, and the folder is the registry.

An entry has `CODES`, what it can find, and ``check(given)``, which yields findings. `Given` has what the
entries look at, computed once.
"""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from loralab.core.registry import Registry
from loralab.data.checks._given import Given
from loralab.data.dataset import Dataset
from loralab.data.findings import Code, Finding, sort
from loralab.data.types import Chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["REGISTRY", "Given", "check_data", "codes"]

REGISTRY = Registry(__name__, list(__path__), "check")


def check_data(
    data: Dataset,
    tokenizer: "PreTrainedTokenizerFast",
    eval_data: Dataset | None = None,
    conversations: Sequence[tuple[str, Chat]] = (),
) -> list[Finding]:
    """Return what is found in the training data, and between it and the validation data, the worst first.

    Args:
        conversations: some rows as they were read, with their sources, to hold their examples to.
    """
    given = Given(data, tokenizer, eval_data, conversations)
    return sort(chain.from_iterable(REGISTRY.get(name).check(given) for name in REGISTRY.names))


def codes() -> list[Code]:
    """Return all that the checks can find, by code."""
    found = chain.from_iterable(REGISTRY.get(name).CODES for name in REGISTRY.names)
    return sorted(found, key=lambda code: code.code)
