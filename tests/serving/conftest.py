"""A tiny model that has been taught one answer, so that it really says where it ends."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """What makes tiny models, tokenizers and rows."""
    # Not at the top: it imports torch, which reads the environment that `tests/conftest.py` sets.
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "models" / "tiny.py")))


@pytest.fixture(scope="session")
def taught(tiny: SimpleNamespace) -> Callable[[str], tuple[Any, Any]]:
    """Return a model that goes on with a text as it was taught to, and its chat tokenizer."""
    import torch

    def teach(text: str) -> tuple[Any, Any]:
        model, tokenizer = tiny.make_model(width=32), tiny.make_tokenizer(chat=True)
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(80):
            loss = model(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.05
        return model.eval(), tokenizer

    return teach
