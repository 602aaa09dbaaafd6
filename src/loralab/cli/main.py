"""``loralab``: finds the commands, runs one, and turns errors into one line and exit code 2."""

import logging
import os
import sys
from collections.abc import Sequence

from cyclopts import App
from cyclopts.exceptions import CycloptsError
from pydantic import ValidationError

import loralab
from loralab.cli.commands import REGISTRY
from loralab.errors import LoralabError
from loralab.training.config import explain

__all__ = ["main", "make_app"]

_TALKATIVE = ("bitsandbytes", "torchao", "torch.utils._pytree")
"""Libraries that say as they are imported which of their kernels are not for this machine."""


def make_app() -> App:
    """Return the command line with every command in ``cli/commands``."""
    app = App(
        name="loralab",
        help="Fine-tune, inspect, combine, switch and serve low-rank adapters (LoRA).",
        version=loralab.__version__,
    )
    for name in REGISTRY.names:
        app.command(REGISTRY.get(name).command, name=name.replace("_", "-"))
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit: 0 when it succeeded, 2 for a mistake in what was asked, 130 on Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        make_app()(words, exit_on_error=False, print_error=False)
    except (LoralabError, CycloptsError) as error:
        if debug:
            raise
        _fail(_one_line(error))
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str) -> None:
    print(f"loralab: {message}", file=sys.stderr)
    sys.exit(2)


def _one_line(error: Exception) -> str:
    if isinstance(error.__cause__, ValidationError):
        return explain(error.__cause__)
    return " ".join(str(error).split())
