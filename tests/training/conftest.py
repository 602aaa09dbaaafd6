"""A tiny base, data of very uneven lengths, and runs of them."""

import runpy
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loralab.training.config import RunConfig


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """What makes tiny models, tokenizers and rows."""
    # Not at the top: it imports torch, which reads the environment that `tests/conftest.py` sets.
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "models" / "tiny.py")))


@pytest.fixture(scope="session")
def tiny_dir(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a random Llama of 14,288 parameters and its tokenizer."""
    return tiny.write_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def train_file(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 rows, so that with a batch of 4 the last batch of an epoch has 3."""
    return tiny.write_jsonl(tmp_path_factory.mktemp("data") / "train.jsonl", tiny.make_rows(23))


@pytest.fixture(scope="session")
def eval_file(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 rows that are not in the training file."""
    return tiny.write_jsonl(tmp_path_factory.mktemp("data") / "eval.jsonl", tiny.make_rows(7, seed=9))


@pytest.fixture(scope="session")
def finish() -> Callable[[Generator[Any, None, Any]], tuple[Any, list[Any]]]:
    """Return what a generator returns, and all that it yields."""

    def run(work: Generator[Any, None, Any]) -> tuple[Any, list[Any]]:
        told = []
        while True:
            try:
                told.append(next(work))
            except StopIteration as end:
                return end.value, told

    return run


@pytest.fixture
def settings(tmp_path: Path, tiny_dir: Path, train_file: Path) -> Callable[..., RunConfig]:
    """Return the settings of a small run, with what the test changes."""

    def make(**changes: Any) -> RunConfig:
        values = {
            "name": "run",
            "model": str(tiny_dir),
            "data": str(train_file),
            "runs": str(tmp_path / "runs"),
            "dtype": "float32",
            "r": 4,
            "learning_rate": 1e-2,
            "batch_size": 4,
            "max_steps": 8,
        }
        # Without data to evaluate on, only the pace of the checkpoints is left of it.
        values["eval_steps" if "eval_data" in changes else "save_steps"] = 4
        return RunConfig(**values | changes)

    return make
