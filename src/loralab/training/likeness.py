"""The settings of another run or adapter, to begin from."""

import os
from pathlib import Path
from typing import Any

from loralab.adapters.peft_format import read_config
from loralab.adapters.store import find_adapter
from loralab.training.config import read_toml
from loralab.training.effort import ADAPTERS_OWN

__all__ = ["settings_of"]

_PLACE = ("name", "runs")
_SHAPE = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")


def settings_of(name: str, runs: str = "runs", *, full: bool = False) -> dict[str, Any]:
    """Return the settings of the run `name`, but for its name, or what an adapter's own config says.

    An adapter that was trained elsewhere tells its base, rank, scale, dropout and targets. With `full`, what
    an adapter alone has is left out.

    Raises:
        ConfigError: the run's settings cannot be read.
        AdapterError: there is no such run or adapter.
    """
    left_out = (*_PLACE, *ADAPTERS_OWN) if full else _PLACE
    return {key: value for key, value in _told_by(name, runs).items() if key not in left_out}


def _told_by(name: str, runs: str) -> dict[str, Any]:
    for folder in (Path(runs) / name, Path(name), Path(name).parent):
        if os.path.isfile(folder / "config.toml"):
            return read_toml(folder / "config.toml")
    lora = read_config(find_adapter(name, runs))
    found = {key: getattr(lora, key) for key in _SHAPE}
    targets = lora.target_modules
    if targets is not None:
        found["target_modules"] = targets if isinstance(targets, str) else ", ".join(sorted(targets))
    if lora.base_model_name_or_path:
        found["model"] = lora.base_model_name_or_path
    return found
