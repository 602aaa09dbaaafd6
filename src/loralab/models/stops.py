"""Where a model's own files say that a text ends."""

from typing import Any

__all__ = ["own_stops"]


def own_stops(model: Any) -> list[int]:
    """Return the ids at which the model's own files say that generation ends."""
    own = model.generation_config.eos_token_id
    return own if isinstance(own, list) else [] if own is None else [own]
