"""Where a sweep lies and what it is of: checked before anything is loaded. Needs no torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralab.errors import ConfigError
from loralab.training.config import RunConfig
from loralab.training.sweep.space import Space, shown

__all__ = ["TABLE", "How", "Opened", "open_sweep"]

TABLE = "sweep.json"
_MAY_CHANGE = ("name", "runs", "report_to", "activation_checkpointing", "keep_checkpoints")
"""Settings that say nothing about what a trial comes to."""


@dataclass(frozen=True)
class How:
    """How the trials are made."""

    trials: int | None = None
    """How many there are to be. Left out: all combinations of lists, or 20 where there is a range."""
    together: int = 1
    """How many are trained at once, where their settings allow."""
    keep_all: bool = False
    """Keep the checkpoints of all trials, not of the best alone."""
    overwrite: bool = False
    """Replace a sweep of the same name."""


@dataclass(frozen=True)
class Opened:
    """A sweep that may begin or go on."""

    folder: Path
    space: Space
    how: How
    is_new: bool
    eval_fingerprint: str | None
    """That of the validation data which the first trial was judged by."""

    @property
    def trials(self) -> int:
        """How many trials there are to be."""
        return self.space.trials(self.how.trials)

    @property
    def seed(self) -> int:
        """The seed of the choice among values."""
        return self.space.first().seed

    def facts(self, eval_fingerprint: str | None) -> dict[str, Any]:
        """Return what ``sweep.json`` says of the sweep beside the trials."""
        return {
            "name": self.folder.name,
            "swept": {dimension.name: dimension.text for dimension in self.space.dimensions},
            "settings": _settings(self.space),
            "trials": self.trials,
            "eval_fingerprint": eval_fingerprint,
        }


def open_sweep(space: Space, name: str, how: How) -> Opened:
    """Return the sweep of that name: a new one, or the one to go on with.

    Args:
        name: "" stands for that of the training data, with "-sweep" behind.

    Raises:
        ConfigError: a number is out of range, there is no base or data, or the folder holds something else: a
            run, or a sweep of other settings.
    """
    config = space.first()
    for setting in ("model", "data"):
        if not getattr(config, setting):
            raise ConfigError(
                f'no {setting} was given; add --{setting}, or {setting} = "..." to the TOML file.'
            )
    for flag, number in (("trials", how.trials), ("together", how.together)):
        if number is not None and number < 1:
            raise ConfigError(f"--{flag} is {number}: expected 1 or more.")
    if config.full and how.together > 1:
        raise ConfigError("--together: full trains the base itself, which trials cannot share; leave it out.")
    stem = re.sub(r"[^\w.-]+|\.\.+", "-", Path(config.data).stem).strip("-.")[:60] or "run"
    folder = Path(config.runs) / (name or f"{stem}-sweep")
    if folder.parent.is_file():
        raise ConfigError(f"{folder.parent}: is a file; --runs takes the folder that holds the runs.")
    before = _read(folder)
    if before is None or how.overwrite:
        return Opened(folder, space, how, True, None)
    opened = Opened(folder, space, how, False, before.get("eval_fingerprint"))
    _check_same(before, opened.facts(None), folder)
    return opened


def _read(folder: Path) -> dict[str, Any] | None:
    """Return what the folder's ``sweep.json`` says, or None where there is no sweep yet."""
    try:
        found: dict[str, Any] = json.loads((folder / TABLE).read_text(encoding="utf8"))
    except FileNotFoundError:
        if folder.exists() and any(entry.name != ".lock" for entry in folder.iterdir()):
            raise ConfigError(f"{folder} exists and is no sweep; choose another --name or --runs.") from None
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / TABLE}: damaged ({error}); begin anew with --overwrite.") from None
    return found


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    changed = []
    for part in ("swept", "settings"):
        was, is_now = before.get(part, {}), now[part]
        for name in sorted({*was, *is_now}):
            # What neither says is what it is where nobody says anything.
            usual = RunConfig.model_fields[name].default if name in RunConfig.model_fields else None
            usual = None if part == "swept" else usual
            old, new = was.get(name, usual), is_now.get(name, usual)
            if old != new:
                changed.append(f"{name} was {shown(old)}, now {shown(new)}")
    if changed:
        raise ConfigError(
            f"sweep {folder.name!r} is of other settings: {'; '.join(changed)}. Go on with those, choose "
            "another --name, or replace it with --overwrite."
        )


def _settings(space: Space) -> dict[str, Any]:
    swept = {dimension.name for dimension in space.dimensions}
    dumped = space.first().model_dump(mode="json", exclude_none=True)
    return {name: value for name, value in dumped.items() if name not in {*swept, *_MAY_CHANGE}}
