"""Runs command lines, each in a process of its own that is forked from one that has imported everything.

Reads jobs from standard input, a JSON object a line. The first is run right here, so that all is imported; of
each other one the exit code is printed when it has ended. A job's "acts" send signals to it at exact moments:
when the interpreter announces (`sys.audit`) an event whose arguments match a pattern for the nth time, or for
the event "call", when a function of a matching name is called.
"""

import contextlib
import gc
import json
import os
import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from loralab.cli.main import main


def act_on(event: str, pattern: str, count: int, signals: list[int]) -> Callable[[], int]:
    """Send this process the signals when `event` matches `pattern` for the `count`th time.

    What comes back tells how many times it has matched.
    """
    left = count
    search = re.compile(pattern).search

    def see(text: str) -> None:
        nonlocal left
        if search(text):
            left -= 1
            for number in signals if left == 0 else ():
                os.kill(os.getpid(), number)

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name == event:
            see(" ".join(str(argument) for argument in arguments))

    before = sys.getprofile()

    def profile(frame: FrameType, what: str, value: Any) -> None:
        if what == "call":
            see(frame.f_code.co_name)
        if before:
            before(frame, what, value)

    if event == "call":
        sys.setprofile(profile)
    else:
        sys.addaudithook(hook)
    return lambda: count - left


def carry_out(job: dict[str, Any]) -> None:
    """Run the command line of a job in this process, and exit with its code."""
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(output, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    seen = [act_on(**act) for act in job["acts"]]
    code: Any = 0
    try:
        main(job["arguments"])
    except SystemExit as end:
        code = end.code
    if job["tally"]:
        print(json.dumps([number() for number in seen]))
    # Not `sys.exit`: taking the imported world down would be most of the work.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def read_job() -> dict[str, Any] | None:
    """The next job, or None at the end."""
    line = sys.stdin.readline()
    return json.loads(line) if line else None


def run_here(job: dict[str, Any]) -> None:
    """Run a command line without a process of its own."""
    with (
        open(job["output"], "w") as output,
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        main(job["arguments"])


def serve(read: Callable[[], dict[str, Any] | None]) -> None:
    """Fork a process for each job, one after the other."""
    first = read()
    assert first
    run_here(first)
    # Or each child's collector would visit, and so copy, all that was imported.
    gc.collect()
    gc.freeze()
    while job := read():
        child = os.fork()
        if not child:
            carry_out(job)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve(read_job)
