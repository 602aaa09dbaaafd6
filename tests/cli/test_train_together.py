"""``loralab train`` with several files: runs that train at once, each a run like any other."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loralab.training.folder import RunFolder

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def files(bench: Path) -> list[str]:
    """Settings of two runs that differ in data, rank and length."""
    for name, own in (
        ("a", 'data = "train.jsonl"\nr = 2\nmax_steps = 3\n'),
        ("b", 'data = "eval.jsonl"\nr = 3\nmax_steps = 2\neval_data = "eval.jsonl"\n'),
    ):
        Path(f"{name}.toml").write_text(f'name = "{name}"\nmodel = "tiny"\ndtype = "float32"\n{own}')
    return ["a.toml", "b.toml"]


def test_two_files_are_two_runs(files, loralab):
    result = loralab("train", *files, "--plain")
    assert (result.code, result.err) == (0, "")
    for words in (
        "run: runs/a\n",
        "run: runs/b\n",
        "adapter: rank 2, alpha 32, on 15 modules\n",
        "adapter: rank 3, alpha 32, on 15 modules\n",
        "a: step 3/3  loss ",
        "b: step 2/2  loss ",
        "b: step 2/2  eval loss ",
        "adapter: runs/a/adapter\n",
        "adapter: runs/b/adapter\n",
        "loralab show a\n",
    ):
        assert words in result.out
    assert [RunFolder(Path("runs") / name).state().step for name in ("a", "b")] == [3, 2]
    listed = {run["name"]: run["state"] for run in loralab("runs", "--json").json}
    assert listed == {"poet": "finished", "a": "finished", "b": "finished"}
    assert loralab("show", "a").code == loralab("show", "b").code == 0
    assert loralab("eval", "--model", "tiny", "--adapter", "b", "--data", "eval.jsonl").code == 0


def test_flags_are_for_all(files, loralab):
    assert loralab("train", *files, "--r", "5", "--runs", "elsewhere").code == 0
    assert [RunFolder(Path("elsewhere") / name).config().r for name in ("a", "b")] == [5, 5]


def test_as_json_each_event_says_whose_it_is(files, loralab):
    result = loralab("train", *files, "--json")
    assert result.code == 0
    for name in ("a", "b"):
        written = [dict(event) for event in RunFolder(Path("runs") / name).events()]
        for event in written:
            del event["time"]
        assert [event for event in result.lines if event.pop("run", name) == name] == written


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--name", "x"], '--name is of one run, and there are 2 files; put name = "..." into each file.'),
        (["--data", "train.jsonl"], "--data is of one run"),
        (["--eval-data", "train.jsonl"], "--eval-data is of one run, and there are 2 files; put eval_data"),
        (["a.toml"], "a.toml and a.toml: both runs are named 'a'; give each its own name."),
        (["other.toml"], "a.toml has model 'tiny', other.toml has 'wide'; runs that are trained together"),
        (["none.toml"], "none.toml: no such file."),
        (["runs/poet/config.toml"], "runs/poet/config.toml: there is a run 'poet' in runs already"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(files, loralab, flags, words):
    Path("other.toml").write_text('name = "c"\nmodel = "wide"\ndata = "train.jsonl"\ndtype = "float32"\n')
    result = loralab("train", *files, *flags)
    assert result.code == 2
    assert result.err.startswith(f"loralab: {words}")
    assert result.err.count("\n") == 1
    assert [path.name for path in Path("runs").iterdir()] == ["poet"]


def test_a_run_that_fails_is_told_at_once_and_at_the_end(files, loralab):
    Path("c.toml").write_text(
        'name = "c"\nmodel = "tiny"\ndata = "train.jsonl"\ndtype = "float32"\nlearning_rate = 1e30\n'
    )
    result = loralab("train", *files, "c.toml", "--plain")
    assert result.code == 2
    assert result.err.startswith("loralab: run 'c': the loss is not finite at step 2")
    assert result.out.index("c: failed: the loss is not finite") < result.out.index("a: step 3/3")
    assert "adapter: runs/a/adapter\n" in result.out
    states = [RunFolder(Path("runs") / name).state().state for name in ("a", "b", "c")]
    assert states == ["finished", "finished", "failed"]


def test_ctrl_c_saves_all_and_each_goes_on_alone(files, loralab):
    arguments = ["train", *files, "--max-steps", "400", "--save-steps", "400", "--eval-steps", "400"]
    Path("a.toml").write_text(Path("a.toml").read_text() + 'eval_data = "eval.jsonl"\n')
    with subprocess.Popen(
        [sys.executable, "-m", "loralab.cli", *arguments], stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout
        before = "".join(iter(process.stdout.readline, "\n"))
        assert "run: runs/a" in before
        while not process.stdout.readline().startswith("a: step 20/400"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        after = process.stdout.read()
    assert process.returncode == 130
    assert "Traceback" not in after
    for name in ("a", "b"):
        assert f"stopped and saved. Go on with: loralab resume {name}\n" in after
        run = RunFolder(Path("runs") / name)
        step = run.state().step
        assert (run.state().state, run.checkpoint(step).is_dir()) == ("interrupted", True)
        result = loralab("resume", name, "--plain")
        assert result.code == 0
        assert f"going on from step {step}\n" in result.out
        assert (run.adapter / WEIGHTS).is_file()


@pytest.mark.parametrize("live", [False, True])
def test_on_a_terminal_each_run_has_its_line(files, live, monkeypatch, capsys, loralab):
    """A terminal is told by its file; what is checked is the last frame."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: live, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    result = loralab("train", *files)
    assert result.code == 0
    assert all(words in result.out for words in ("3/3", "2/2"))
    assert ("━" in result.out) is live
