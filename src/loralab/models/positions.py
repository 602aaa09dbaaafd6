"""How long a row a model takes, and how long a row a run cuts."""

from typing import Any

from loralab.errors import ConfigError

__all__ = ["DEFAULT_CUTOFF", "choose_cutoff", "max_positions"]

DEFAULT_CUTOFF = 512

_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


def max_positions(config: Any) -> int | None:
    """Return the longest row that a model of that config takes, in tokens; None where it sets no limit."""
    values = (getattr(config, key, None) for key in _KEYS)
    return next((value for value in values if isinstance(value, int)), None)


def choose_cutoff(wanted: int | None, config: Any, name: str) -> int:
    """Return the cutoff for the model `name`: the wanted one, or 512, or its positions if they are fewer.

    Raises:
        ConfigError: more is wanted than the model has positions.
    """
    positions = max_positions(config)
    if wanted is None:
        return DEFAULT_CUTOFF if positions is None else min(DEFAULT_CUTOFF, positions)
    if positions is not None and wanted > positions:
        raise ConfigError(
            f"cutoff_length is {wanted}, but {name} has {positions} positions; "
            f"use --cutoff-length {positions} or less."
        )
    return wanted
