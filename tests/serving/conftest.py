"""A tiny model that has been taught one answer, and small bases with adapters of every kind beside peft."""

import gc
import runpy
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Bases and adapters, and what peft makes of them; see `family.py`."""
    made = runpy.run_path(str(Path(__file__).with_name("family.py")))
    # Closing an engine collects garbage, which takes a second with all that torch and transformers made.
    gc.collect()
    gc.freeze()
    made["relatives"] = made["write_all"](tmp_path_factory.mktemp("family"))
    return SimpleNamespace(**made)


@pytest.fixture(scope="session")
def llama(family: SimpleNamespace) -> Any:
    """The base with the most kinds of adapters."""
    return family.relatives["llama"]


@pytest.fixture
def serve(family: SimpleNamespace) -> Iterator[Callable[..., Any]]:
    """Return a function that starts an engine on a relative; all are closed in the end."""
    import contextlib

    with contextlib.ExitStack() as engines:

        def start(relative: Any, *, dtype: str = "float32", roots: Any = None, **settings: Any) -> Any:
            return family.start(engines, relative.load(dtype), roots or [relative.adapters], settings)

        yield start
