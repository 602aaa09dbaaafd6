"""The errors that loralab raises on purpose.

Each is also the standard library's error of that kind, so that code which does not know loralab still
catches it. A message is one line that says what is wrong, where, what was expected and what to do; the
command line prints it as it stands and exits with code 2.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "AdapterError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LoralabError",
    "ModelError",
    "TargetError",
    "TrainingError",
    "did_you_mean",
]


class LoralabError(Exception):
    """Any error that a user can act on."""


class ConfigError(LoralabError, ValueError):
    """A setting is unknown, out of range, or at odds with another one."""


class DataError(LoralabError, ValueError):
    """A data file is missing, malformed, or has nothing to train on."""


class ModelError(LoralabError, OSError):
    """A base model or tokenizer cannot be read or used."""


class AdapterError(LoralabError, ValueError):
    """An adapter cannot be read, written, or does not fit the model."""


class TargetError(LoralabError, ValueError):
    """The target modules match nothing, or nothing that can be adapted."""


class CheckpointError(LoralabError, RuntimeError):
    """A run directory or checkpoint cannot be written, read, or continued."""


class TrainingError(LoralabError, RuntimeError):
    """Training cannot go on, for example because the loss is not finite."""


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``" Did you mean 'x' or 'y'?"`` for the known words nearest to `word`, or ``""``.

    Of 0 to 1, `cutoff` is how alike they have to be.
    """
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=cutoff)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
