"""The benchmarks run, in their quick form, and report every case. What they measure is not judged here."""

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def numbers(value: Any) -> list[float]:
    """All numbers in nested dictionaries."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    return [value] if isinstance(value, int | float) else []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a benchmark by its name and return what it reports."""

    def run(name: str) -> dict[str, Any]:
        monkeypatch.syspath_prepend(str(FOLDER))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--json"])
        results = sorted((FOLDER / "results").iterdir())
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        assert sorted((FOLDER / "results").iterdir()) == results, "a quick run leaves no record"
        values: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert {"hardware", "threads", "torch", "peft", "commit", "date"} <= values.keys()
        assert all(math.isfinite(number) for number in numbers(values))
        return values

    return run


def test_adapters_against_peft(quick: Any) -> None:
    values = quick("adapters")
    tables = values["seconds"]
    assert all({"loralab", "peft"} <= table.keys() for table in tables.values())
    assert {"load_adapter, beside 3", "merge_adapter", "DoRA, training step, 2 x 8 tokens"} <= tables.keys()
    assert values["drift"]["loralab"] == 0
    assert values["drift"]["peft"] > 0


def test_tools_against_their_peers(quick: Any) -> None:
    values = quick("tools")
    assert values["combine"]["exact"]["error"] < 1e-5 < values["combine"]["peft linear"]["error"]
    assert all("randomized" in table for table in values["extract"].values())


def test_a_training_step_against_peft(quick: Any) -> None:
    for table in quick("train_step")["seconds"].values():
        ours, theirs = table["loralab, dropout 0"], table["peft, dropout 0"]
        assert ours["error"] == pytest.approx(theirs["error"], rel=1e-3)
        assert {"full fine-tuning", "frozen"} <= table.keys()
