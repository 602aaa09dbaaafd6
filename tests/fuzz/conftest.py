"""A folder with a tiny base, data and an adapter, and a way to hold command lines to what they promise."""

import contextlib
import io
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from loralab.cli.main import main


@dataclass(frozen=True)
class Place:
    """A folder in which command lines are tried; it is the current one."""

    folder: Path

    def __call__(self, *arguments: object, typed: str = "") -> tuple[int, str, str]:
        """Return the exit code, the output and the errors of a command line; any other end is raised."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        before, sys.stdin = sys.stdin, io.StringIO(typed)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stdin = before
        return code, out.getvalue(), err.getvalue()

    def check(self, *arguments: object, typed: str = "", may_find: bool = False) -> None:
        """Assert that a command line succeeds, or says in one line why not, and leaves nothing half-made.

        With `may_find`, it may also exit with 2 for what it printed.
        """
        code, out, err = self(*arguments, typed=typed)
        assert code in (0, 2), (code, err)
        if code == 2 and not (may_find and out and not err):
            assert re.fullmatch(r"loralab: \S[^\n]*\n", err), err
            assert len(err) < 2000, err
        assert "Traceback" not in out + err
        left = [path for path in self.folder.rglob(".*") if path.suffix in (".tmp", ".old")]
        assert not left


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder: "tiny", "train.jsonl", "eval.jsonl" and the run "poet"."""
    tiny = runpy.run_path(str(Path(__file__).parents[1] / "models" / "tiny.py"))
    folder = tmp_path_factory.mktemp("fuzz")
    tiny["write_base"](folder / "tiny")
    tiny["write_jsonl"](folder / "train.jsonl", tiny["make_rows"](6))
    tiny["write_jsonl"](folder / "eval.jsonl", tiny["make_rows"](2, seed=9))
    flags = "train --model tiny --data train.jsonl --name poet --r 2 --max-steps 1 --batch-size 4"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, _, err = Place(folder)(*flags.split(), "--learning-rate", "0.05", "--dtype", "float32")
        assert code == 0, err
    return folder


@pytest.fixture(scope="module")
def place(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A copy of it to work in."""
    folder = tmp_path_factory.mktemp("place") / "here"
    shutil.copytree(made, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Place(folder)
