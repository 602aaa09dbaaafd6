"""The data of a run, read as its settings say."""

from typing import Any

from loralab.data.dataset import Dataset, load_dataset, load_split
from loralab.models.positions import DEFAULT_CUTOFF
from loralab.training.config import RunConfig

__all__ = ["load_both"]


def load_both(config: RunConfig, tokenizer: Any) -> tuple[Dataset, Dataset | None]:
    """Return what is trained on and what is validated on, if anything is. Raises as `load_split`.

    Args:
        config: its cutoff is already the one that holds for the base.
    """
    reading = config.reading(config.cutoff_length or DEFAULT_CUTOFF)
    if config.eval_split is not None:
        return load_split(config.data, tokenizer, reading)
    data = load_dataset(config.data, tokenizer, reading)
    if not config.eval_data:
        return data, None
    return data, load_dataset(config.eval_data, tokenizer, reading)
