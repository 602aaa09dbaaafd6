"""The examples: short, run on the bundled base alone, and print what they promise."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


def run(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that an example prints."""
    runpy.run_path(str(FOLDER / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def separate_run(name: str) -> list[str]:
    """The lines that an example prints in a Python of its own."""
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent / "src")}
    done = subprocess.run(
        [sys.executable, str(FOLDER / name)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples run in an empty folder, without assets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORALAB_ASSETS", raising=False)


def test_examples_are_numbered_short_and_tested() -> None:
    assert [int(path.name[:2]) for path in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))
    tests = Path(__file__).read_text(encoding="utf8")
    for path in EXAMPLES:
        lines = path.read_text(encoding="utf8").splitlines()
        assert len(lines) <= 60, path.name
        assert any(f"python examples/{path.name}" in line for line in lines[:6]), path.name
        assert f'run("{path.name}"' in tests, f"{path.name} has no test"


def test_training_in_python(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = run("01_train_in_python.py", capsys)
    found = [re.fullmatch(r"validation loss: base ([\d.]+), adapter ([\d.]+)", line) for line in lines]
    base, adapter = next(map(float, match.groups()) for match in found if match)
    assert adapter < base / 4
    said = dict(line.split(":", 1) for line in lines if line.startswith(("adapter:", "base:")))
    assert "Woof!" in said["adapter"]
    assert "Woof!" not in said["base"]
    assert not list(tmp_path.iterdir()), "it cleans up behind itself"


def test_a_script_for_peft(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("02_peft_script.py", capsys)
    assert "trainable params: 174,080 ||" in lines[0]
    losses = [float(json.loads(line.replace("'", '"'))["loss"]) for line in lines if "'loss'" in line]
    assert losses[-1] < losses[0] / 2
    assert lines[-1].startswith("The captain ")
    assert lines[-1].endswith((" at dawn.", " at noon.", " at dusk."))


def test_switching_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("03_switch_adapters.py", capsys)
    said = {line[:12].strip(): line[13:] for line in lines[:-1]}
    assert "went to the sea" in said["sea"]
    assert "went to the farm" in said["farm"]
    assert said["base"] not in (said["sea"], said["farm"])
    assert said["sea merged"] == said["sea"]
    assert said["farm merged"] == said["farm"]
    assert lines[-1].endswith("True")


def test_raw_text(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("04_raw_text.py", capsys)
    blocks = [line for line in lines if line.endswith("tokens are trained")]
    assert len(blocks) == 3
    assert lines[-1].startswith("Once upon a time, there was a small boat named Pip.")


def test_migrating_from_peft() -> None:
    lines = separate_run("05_migrating_from_peft.py")
    assert lines[0] == "peft is loralab.peft, in place of release 0.21.2"
    wrapped, bare, off = (float(line.rpartition(" ")[2]) for line in (lines[1], lines[2], lines[4]))
    assert wrapped == bare < off / 2
    assert lines[3] == "35 adapted layers, 70 tensors"
    assert lines[5] == "the same adapter both ways: True"


def test_an_engine_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("06_engine.py", capsys)
    assert lines[0] == "adapters read from disk: 2"
    said = {line[:17].strip(): line[18:] for line in lines[1:]}
    assert list(said) == ["sea", "farm", "base", "sea:0.5+farm:0.5"]
    assert "went to the sea and found a red boat" in said["sea"]
    assert "went to the farm and fed a black cow" in said["farm"]
    assert said["base"] not in (said["sea"], said["farm"])
    assert said["sea:0.5+farm:0.5"] != said["base"]


def test_asking_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai", reason="OpenAI's client is not installed")
    lines = run("07_ask_a_server.py", capsys)
    said = dict(line.split(":", 1) for line in lines if ": " in line)
    assert said["served"].split() == ["demo", "cat", "dog"]
    assert "Woof!" in said["dog (merged)"]
    assert "Meow." in said["cat (merged)"]
    assert "Woof!" not in said["demo (base)"]
    assert len(said["in pieces"].split("' '")) > 2
    assert "'cow'" in said["refused"]
    assert said["ended"] == " 0"
