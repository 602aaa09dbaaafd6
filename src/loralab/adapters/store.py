"""Where an adapter lies: a folder, a run's name, or a hub id."""

import contextlib
import os
from pathlib import Path

from loralab.core.peft_config import CONFIG_FILE
from loralab.errors import AdapterError, did_you_mean
from loralab.hub import find_folder

__all__ = ["find_adapter"]


def find_adapter(name: str, runs: str | Path = "runs") -> Path:
    """Return the folder of the adapter called `name`: a folder, else a run in `runs`, else on the hub.

    Raises:
        AdapterError: there is none; near names among the runs are offered.
    """
    # os.path answers no where Path raises, as for a name that is too long.
    if os.path.isfile(Path(name) / CONFIG_FILE):
        return Path(name)
    run = Path(runs) / name
    if os.path.isfile(run / "adapter" / CONFIG_FILE):
        return run / "adapter"
    if os.path.isdir(run / "model"):
        raise AdapterError(
            f"run {name!r} trained all weights, so it has no adapter: use --model {run / 'model'}."
        )
    if os.path.isfile(run / "config.toml"):
        raise AdapterError(
            f"run {name!r} has no adapter yet; 'loralab resume {name}' goes on with it. "
            f"Its checkpoints are adapters too: {run / 'checkpoints'}."
        )
    if os.path.isdir(name):
        raise AdapterError(f"{name}: no {CONFIG_FILE} there; is it an adapter folder?")
    known = [path.parent.parent.name for path in Path(runs).glob(f"*/adapter/{CONFIG_FILE}")]
    if name.count("/") == 1:
        with contextlib.suppress(AdapterError):
            return find_folder(name, [CONFIG_FILE, "adapter_model.*", "loralab.json"])
    raise AdapterError(
        f"there is no adapter {name!r}: not a folder, not a run in {runs}"
        f"{', not on the hub (or it cannot be reached)' if '/' in name else ''}.{did_you_mean(name, known)}"
    )
