"""``loralab sweep``: what is typed, what the screen says, and going on after Ctrl-C."""

import importlib.util
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="the sweeps' optuna is not installed")

from loralab.training.sweep.trials import Sweep

FIXED = (
    *("--model", "tiny", "--data", "train.jsonl", "--eval-data", "eval.jsonl", "--dtype", "float32"),
    *("--max-steps", "4", "--batch-size", "4"),
)


@pytest.fixture
def work(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base and data, which is current."""
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_a_sweep_says_what_it_does_and_what_came_of_it(loralab: Any, work: Path) -> None:
    result = loralab("sweep", *FIXED, "--r", "2,4", "--learning-rate", "1e-3,5e-2", "--name", "s", "--plain")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[:4] == [
        f"sweep: {Path('runs/s')}",
        "r: 2,4",
        "learning_rate: 0.001,0.05",
        "trials: 4, every combination",
    ]
    assert "trial-000 (1 of 4): r 2, learning_rate 0.001" in lines
    assert any(line.startswith("trial-000 finished, eval loss") and "left" in line for line in lines)
    table = lines[lines.index("trial\tr\tlearning_rate\tloss\tstep\tstate") + 1 :][:4]
    losses = [float(line.split("\t")[3]) for line in table]
    assert losses == sorted(losses)
    best = table[0].split("\t")
    assert f"best: {best[0]}, r {best[1]}, learning_rate {best[2]}: loss {best[3]}" in lines
    assert loralab("show", "s", "--json").code == 0, "the best adapter goes by the sweep's name"


def test_the_same_command_shows_the_results_again(loralab: Any, work: Path) -> None:
    words = ("sweep", *FIXED, "--lora-alpha", "8..64", "--trials", "2", "--json")
    first = loralab(*words).lines
    assert {line["event"] for line in first} >= {"begun", "stepped", "evaluated", "ended", "swept"}
    assert [line["number"] for line in first if line["event"] == "begun"] == [1, 2]
    again = loralab(*words).lines
    assert again == first[-1:]
    assert first[-1]["folder"] == str(Path("runs/train-sweep"))


def test_settings_come_from_a_file_and_from_another_run(loralab: Any, work: Path) -> None:
    text = 'model = "tiny"\ndata = "train.jsonl"\nname = "poet"\nmax_steps = 3\ndtype = "float32"\n'
    Path("poet.toml").write_text(text)
    result = loralab("sweep", "poet.toml", "--eval-split", "0.3", "--batch-size", "2,4", "--json")
    assert result.code == 0, result.err
    assert result.lines[-1]["folder"] == str(Path("runs/poet-sweep")), "the run of that name stays as it is"
    assert [row["steps"] for row in result.lines[-1]["rows"]] == [3, 3]
    copied = loralab("sweep", "--like", "poet", "--r", "2,4", "--name", "copied", "--json")
    assert copied.code == 0, copied.err
    assert {row["steps"] for row in copied.lines[-1]["rows"]} == {4}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--r", "4"), "nothing is swept"),
        (("--r", "4,x", "--cutoff-length", "64,128"), "cutoff_length cannot be swept .*; r is 'x'"),
        (("--r", "4,8", "--together", "0"), "--together is 0: expected 1 or more"),
        (("--r", "4,8", "--runs", "train.jsonl"), "--runs takes the folder"),
        (("--r", "4,8", "--name", "a/b"), "name is 'a/b'"),
    ],
)
def test_mistakes_are_one_line(loralab: Any, work: Path, words: tuple[str, ...], line: str) -> None:
    result = loralab("sweep", *FIXED, *words)
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert not Path("runs/train-sweep").exists()
    assert re.search(line, result.err), result.err


def test_a_sweep_without_validation_data_is_refused(loralab: Any, work: Path) -> None:
    result = loralab("sweep", "--model", "tiny", "--data", "train.jsonl", "--r", "2,4")
    assert (result.code, "--eval-data FILE, or --eval-split" in result.err) == (2, True)


def test_without_optuna_it_says_what_to_install(
    loralab: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else found(name))
    result = loralab("sweep", *FIXED, "--r", "2,4")
    assert (result.code, "pip install 'loralab[sweep]'" in result.err) == (2, True)


def test_ctrl_c_saves_and_the_same_command_goes_on(
    loralab: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Sweep.events

    def pressed(sweep: Sweep) -> Any:
        for number, event in enumerate(events(sweep)):
            if number == 4:
                os.kill(os.getpid(), signal.SIGINT)
            yield event

    words = ("sweep", *FIXED, "--r", "2,4", "--plain")
    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "events", pressed)
        stopped = loralab(*words)
    assert stopped.code == 130
    assert "stopped and saved, 2 trials are left. Go on with the same command." in stopped.out
    assert "trial-000\t2\t" in stopped.out
    on = loralab(*words)
    assert on.code == 0
    assert on.out.startswith(f"sweep: {Path('runs/train-sweep')}, going on\n")
    assert "trial-001 finished" in on.out


def test_the_help_needs_no_torch() -> None:
    code = "import sys\nfrom loralab.cli.commands import sweep\nassert 'torch' not in sys.modules"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
