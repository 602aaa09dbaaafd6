"""The settings that `train`, `plan` and `sweep` are given: flags over files over what is copied."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from loralab.errors import ConfigError
from loralab.training.config import RunConfig, check, layered, read_toml

__all__ = ["Origin", "gather"]

_OF_ONE = ("name", "data", "eval_data")
"""Settings that runs which train together do not share."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where settings come from, besides flags and files."""

    like: str | None = None
    """Copy the settings of this run, or of an adapter, where nothing else is given."""
    go_on: Annotated[str | None, Parameter(name="--from")] = None
    """Short for --from-adapter: go on from this adapter."""


def gather(files: Sequence[Path], config: RunConfig, origin: Origin) -> list[RunConfig]:
    """Return the settings of each file, or of the flags alone, checked.

    Raises:
        ConfigError: a setting is wrong, or is one run's and there are several.
    """
    given: dict[str, Any] = {name: getattr(config, name) for name in config.model_fields_set}
    if origin.go_on is not None:
        given["from_adapter"] = origin.go_on
    for name in given if len(files) > 1 else ():
        if name in _OF_ONE:
            raise ConfigError(
                f"--{name.replace('_', '-')} is of one run, and there are {len(files)} files; "
                f'put {name} = "..." into each file.'
            )
    if "epochs" in given and given.get("max_steps") is not None:
        raise ConfigError("--epochs and --max-steps both say how long the run is; give one of them.")
    written = [(str(path), read_toml(path)) for path in files] or [("", {})]
    merged = [(where, layered(values, given)) for where, values in written]
    return [
        check(layered(_copied(origin, config.runs, values), values), where=where) for where, values in merged
    ]


def _copied(origin: Origin, runs: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings to copy for a run that is given others."""
    if origin.like is None:
        return {}
    from loralab.training.likeness import settings_of

    return settings_of(origin.like, runs, full=given.get("full") is True)
