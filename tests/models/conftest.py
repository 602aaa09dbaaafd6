"""Tiny bases on disk."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """What makes tiny models, tokenizers and rows."""
    # Not at the top: it imports torch, which reads the environment that `tests/conftest.py` sets.
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny.py"))))


@pytest.fixture(scope="session")
def tiny_dir(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a random Llama of 14,288 parameters and its tokenizer."""
    return tiny.write_base(tmp_path_factory.mktemp("tiny"))
