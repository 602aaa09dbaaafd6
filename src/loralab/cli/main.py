"""``loralab``: finds the commands, runs one, and turns errors into one line and exit code 2."""

import errno
import logging
import os
import re
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

_TALKATIVE = ("bitsandbytes", "lm_eval", "torchao", "torch.utils._pytree")
"""Libraries that say what nobody asked, as which of their kernels are not for this machine."""

_NO_MEMORY = re.compile("MemoryError|out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
"""How Python, CUDA and torch's allocator say it."""

_NUMBERS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Where torchrun, accelerate and mpirun say which of a run's processes this is."""


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
    _open_streams()
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
        if _accompanies(words):
            sys.exit(0)
        _fail(_one_line(error))
    except KeyboardInterrupt:
        if not _accompanies(words):
            print("stopped.", file=sys.stderr)
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if debug or not _NO_MEMORY.search(f"{type(error).__name__} {error}"):
            raise
        _fail(_out_of_memory(error))
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        # The reader of our output has gone, as `| head` does, or the terminal; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _accompanies(words: Sequence[str]) -> bool:
    """Return whether this is a training process that is not the first: what it has to say, that one says.

    It does not exit with an error either, on which torchrun might end the first before it has spoken.
    """
    number = next((os.environ[name] for name in _NUMBERS if os.environ.get(name)), "0")
    return number != "0" and bool({"train", "resume"} & set(words[:1]))


def _open_streams() -> None:
    """Let what a caller has closed (`>&-`) lead nowhere, lest a file of ours be opened in its place."""
    if sys.stdin is None or sys.stdout is None or sys.stderr is None:
        while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(handle)
        sys.stdin = sys.stdin or os.fdopen(0)
        sys.stdout = sys.stdout or os.fdopen(1, "w")
        sys.stderr = sys.stderr or os.fdopen(2, "w")


def _out_of_memory(error: Exception) -> str:
    asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    return (
        f"out of memory{f': {asked[1]} more were needed' if asked else ''}. "
        "Take fewer or shorter examples at a time (--micro-batch-size, --cutoff-length), a lower --r, or let "
        "'loralab train --fit' choose; a run that had begun goes on with 'loralab resume'."
    )


def _fail(message: str) -> None:
    print(f"loralab: {message}", file=sys.stderr)
    sys.exit(2)


def _one_line(error: Exception) -> str:
    if isinstance(error.__cause__, ValidationError):
        return explain(error.__cause__)
    return " ".join(str(error).split())
