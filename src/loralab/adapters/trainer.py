"""Make `transformers.Trainer` treat a `PeftModel` of ours as it treats one of PEFT's.

The Trainer saves and resumes adapters, not whole models, for what it takes for an adapted model; it decides
with ``isinstance`` against classes of the `peft` package. `tests/parity/test_trainer.py` holds this file to
the installed transformers.
"""

import importlib
import sys
from typing import Any


def teach_trainer(adapted: type) -> None:
    """Add the class `adapted` to those that the Trainer takes for an adapted model. Safe to repeat."""
    if "transformers" not in sys.modules:
        return
    utils: Any = importlib.import_module("transformers.trainer_utils")
    known = (getattr(utils, "PeftModel", ()), getattr(utils, "PeftMixedModel", ()))
    if adapted in _flat(known):
        return
    utils.PeftModel = (*_flat(known), adapted)
    utils.PeftMixedModel = ()
    utils.is_peft_available = lambda: True


def _flat(classes: object) -> tuple[type, ...]:
    if isinstance(classes, tuple):
        return tuple(c for part in classes for c in _flat(part))
    return (classes,) if isinstance(classes, type) else ()
