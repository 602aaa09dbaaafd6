"""Tiny models, data and one trained run, and a way to run command lines on them."""

import json
import runpy
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loralab.cli.main import main


@dataclass(frozen=True)
class Result:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON value."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Standard output as JSON values, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class CommandLine:
    """Runs ``loralab`` in this process, in the folder that is current."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> Result:
        """Run a command line and return what came of it; anything but an exit is raised."""
        self.capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self.capsys.readouterr()
        return Result(code, out, err)


@pytest.fixture
def loralab(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line."""
    return CommandLine(capsys)


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """What makes tiny models, tokenizers and rows."""
    # Not at the top: it imports torch, which reads the environment that `tests/conftest.py` sets.
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "models" / "tiny.py")))


@pytest.fixture(scope="session")
def finished(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two bases, one that chats, data, and the finished run "poet"."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.write_base(folder / "tiny")
    tiny.write_base(folder / "wide", width=32, seed=1)
    tiny.write_base(folder / "chatty", chat=True)
    tiny.write_jsonl(folder / "train.jsonl", tiny.make_rows(12))
    tiny.write_jsonl(folder / "eval.jsonl", tiny.make_rows(5, seed=9))
    flags = {
        "model": "tiny",
        "data": "train.jsonl",
        "eval-data": "eval.jsonl",
        "name": "poet",
        "r": 4,
        "learning-rate": 0.05,
        "max-steps": 4,
        "batch-size": 4,
        "dtype": "float32",
    }
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["train", *words, "--json"])
    return folder


@pytest.fixture
def bench(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder to work in; it is the current one."""
    folder = tmp_path / "bench"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder
