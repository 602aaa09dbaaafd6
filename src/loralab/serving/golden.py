"""Whether an adapter is spoken to as it was in training."""

from pathlib import Path
from typing import TYPE_CHECKING

from loralab.adapters.habits import read_habits
from loralab.data.findings import Finding
from loralab.data.golden import compare_golden
from loralab.serving.generate import template_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["verify_golden"]


def verify_golden(folder: Path, tokenizer: "PreTrainedTokenizerFast") -> Finding | None:
    """Return a warning if prompts become other tokens than the adapter in `folder` was trained with.

    None is for an adapter without golden tokens too, as one that was made elsewhere.

    Raises:
        AdapterError: the adapter's ``loralab.json`` is damaged.
        ConfigError: the tokenizer has no chat template, and the adapter was trained with one.
    """
    habits = read_habits(folder)
    if not habits.golden:
        return None
    return compare_golden(habits.golden, template_for(habits, tokenizer), tokenizer)
