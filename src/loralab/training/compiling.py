"""The layers of a model's stack, each compiled by itself: one compilation serves them all."""

import contextlib
import os
from pathlib import Path
from typing import Any

from loralab.errors import ConfigError
from loralab.files import cache_folder
from loralab.models.attention import call_from_compiled
from loralab.training.forecast import stack_of

__all__ = ["compile_layers"]

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_DEFAULT = "torchinductor_"
"""How torch begins the name of its own folder, a temporary one, which it may have put into the variable."""


def compile_layers(model: Any) -> int:
    """Let torch compile the layers when they are first run, for any length of text; return how many.

    What the compiler makes is kept in the cache folder for the next run, unless TORCHINDUCTOR_CACHE_DIR names
    another.

    Raises:
        ConfigError: the model has no stack of layers.
    """
    layers = stack_of(model)
    if not layers:
        raise ConfigError(f"compile: {type(model).__name__} has no stack of layers; leave it out.")
    folder = cache_folder()
    if folder is not None and Path(os.environ.get(_VARIABLE, _DEFAULT)).name.startswith(_DEFAULT):
        with contextlib.suppress(OSError):
            (folder / "compiled").mkdir(parents=True, exist_ok=True)
            os.environ[_VARIABLE] = str(folder / "compiled")
    call_from_compiled()
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)
