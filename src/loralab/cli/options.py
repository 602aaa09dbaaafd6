"""Options that several commands share, described once."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

__all__ = ["Voice"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Voice:
    """Which model speaks, and how it chooses its words."""

    model: str
    """Base model: a folder, a hub id, or "demo"."""
    adapter: str | None = None
    """Adapter: a folder, a run's name, or a hub id."""
    runs: str = "runs"
    """Folder that holds the runs."""
    max_new_tokens: int = 200
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; higher is more random."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    seed: int = 0
    """Seed of the draws."""
    dtype: str = "auto"
    """Precision of the base: auto, float32, bfloat16, float16."""
    allow_pickle: Annotated[bool, Parameter(negative=())] = False
    """Load a base or adapter that is a pickle file."""
