"""Keep the libraries' own progress bars and notices off the screen."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

_IMPORTED = ("torchao", "bitsandbytes", "torch.utils._pytree")
"""Loggers of what transformers imports, which say at once which of their kernels are not for this machine."""


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block transformers prints errors only; afterwards it is as talkative as before."""
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in _IMPORTED}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, before in loggers.items():
            if logger.level == logging.ERROR:
                logger.setLevel(before)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
