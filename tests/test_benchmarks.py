"""The benchmarks run, in their quick form, and report every case. What they measure is not judged here."""

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


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
        return checked(capsys.readouterr().out)

    return run


def alone(name: str) -> dict[str, Any]:
    """Run a benchmark that starts processes, from the command line, and return what it reports."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not run.returncode, run.stderr
    return checked(run.stdout)


def checked(text: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(text)
    assert {"hardware", "threads", "torch", "peft", "commit", "date", "command"} <= values.keys()
    assert all(math.isfinite(number) for number in numbers(values))
    return values


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
    tables = quick("train_step")["seconds"]
    assert len(tables) == 9
    for title, table in tables.items():
        assert {
            f"{library}, dropout {dropout}" for library in ("loralab", "peft") for dropout in (0, 0.05)
        } <= (table.keys())
        ours, theirs = table["loralab, dropout 0"], table["peft, dropout 0"]
        assert ours["error"] == pytest.approx(theirs["error"], rel=1e-3), title
    limits = {"full fine-tuning", "frozen", "frozen, our loss", "matrix products"}
    assert sum(limits <= table.keys() for table in tables.values()) == 6


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="it takes Linux to see a peak")
def test_the_memory_of_a_training_step() -> None:
    (table,) = alone("memory")["tables"].values()
    assert len(table) == 8
    assert table["peft, dropout 0.05"]["ratio"] == 1
    assert all(row["peak"] > 0 for row in table.values())


@pytest.mark.slow
def test_whole_runs_against_peft_and_trl() -> None:
    (table,) = alone("train_run")["tables"].values()
    assert table.keys() == {"loralab", "peft, Trainer", "trl, packed"}
    worst = max(row["error"] for row in table.values())
    for row in table.values():
        seconds, step, loss = next(point for point in row["curve"] if point[2] <= worst)
        assert (row["seconds"], row["steps"]) == (seconds, step)
        assert loss <= row["curve"][0][2]


def test_the_page_is_what_the_results_say() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "performance.py"))
    written = (ROOT / "docs" / "performance.md").read_text(encoding="utf8")
    assert script["page"]() == written, "run: python scripts/performance.py"


def test_many_adapters_together_against_one_after_another(quick: Any) -> None:
    tables = quick("many")["seconds"]
    assert len(tables) == 2
    for table in tables.values():
        alone, together = table["one after another"], table["together"]
        assert together["error"] == pytest.approx(alone["error"], rel=1e-3)


def test_switching_against_peft() -> None:
    (found,) = alone("switch")["results"].values()
    assert found["differing_weights"] == 0 < found["peft"]["differing_weights"]
    assert found["switching"]["p50_us"] <= found["switching"]["p99_us"]


@pytest.mark.slow
def test_serving_against_the_base_and_peft() -> None:
    (found,) = alone("serve")["results"].values()
    assert found["rates"]["base"]["R"] == 1
    assert {"1 merged", "1 mixed", "8 mixed", "32 mixed", "40 over 32 slots"} < found["rates"].keys()
    assert found["peft"].keys() == {"mixed", "switching"}
    assert found["first_token_seconds"].keys() == {"on disk", "in memory", "in a slot"}


def test_the_input_pipeline_against_trl() -> None:
    values = alone("input")
    assert values["tokens"]["loralab"] == values["tokens"]["trl"] > values["rows"] == 48
    assert set(values["seconds"]) == {
        f"file to {what}, {cache} cache" for what in ("examples", "batches") for cache in ("cold", "warm")
    }
    for rates in (values["rows a second"], values["tokens a second"], values["seconds"]):
        assert all({"loralab", "trl"} == table.keys() for table in rates.values())
    assert all(0.5 < fill <= 1 for fill in values["fill"].values())
