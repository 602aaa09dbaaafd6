"""The run folder as others read it: states, names, events, and what a crash leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loralab.errors import CheckpointError, ConfigError
from loralab.training.config import RunConfig
from loralab.training.events import Saved, Stepped
from loralab.training.folder import RunFolder, RunState, find_run, list_runs, unused_name


def make(runs: Path, name: str, **values: object) -> RunFolder:
    """A run folder with its settings, and its state if one is given."""
    folder = RunFolder(runs / name)
    folder.path.mkdir(parents=True)
    (folder.path / "config.toml").write_text(RunConfig(name=name).to_toml())
    if values:
        (folder.path / "run.json").write_text(json.dumps(values))
    return folder


def dead_process() -> int:
    """The id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_run_whose_process_is_gone_is_interrupted_whatever_it_wrote(tmp_path):
    folder = make(tmp_path, "run", state="running", pid=dead_process(), step=7)
    assert folder.state() == RunState("interrupted", folder.state().pid, step=7)


def test_a_run_that_a_process_holds_is_running(tmp_path):
    folder = make(tmp_path, "run", state="running", pid=1)
    code = f"""
from pathlib import Path
from loralab.training.folder import RunFolder
with RunFolder(Path({str(folder.path)!r})).hold():
    print("held", flush=True)
    input()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as child:
        assert child.stdout.readline() == b"held\n"
        assert folder.state().state == "running"
        with pytest.raises(ConfigError, match="run 'run' is running now"), folder.hold():
            pass
        child.kill()
    assert folder.state().state == "interrupted"
    with folder.hold():
        assert folder.state().state == "running"


@pytest.mark.parametrize("pid", [1, os.getpid()], ids=["first", "own"])
def test_another_process_of_the_same_id_is_not_the_run(tmp_path, pid):
    """As in a container that is started again, where the ids begin anew."""
    assert make(tmp_path, "run", state="running", pid=pid).state().state == "interrupted"


@pytest.mark.parametrize("state", ["finished", "failed", "interrupted"])
def test_other_states_are_as_they_were_written(tmp_path, state):
    assert make(tmp_path, "run", state=state, pid=os.getpid()).state().state == state


def test_a_run_that_never_began_is_interrupted(tmp_path):
    assert make(tmp_path, "run").state() == RunState("interrupted")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "running", "mood": 1}', "\xff"])
@pytest.mark.parametrize("name", ["run.json"])
def test_a_damaged_state_is_named(tmp_path, name, content):
    folder = make(tmp_path, "run")
    (folder.path / name).write_bytes(content.encode("latin1"))
    with pytest.raises(CheckpointError, match=r"run/run\.json: damaged") as caught:
        folder.state()
    assert "\n" not in str(caught.value)


def test_a_damaged_plan_is_named(tmp_path):
    folder = make(tmp_path, "run")
    assert folder.plan() == {}
    (folder.path / "plan.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"plan\.json: damaged"):
        folder.plan()


def test_damaged_settings_are_named(tmp_path):
    folder = make(tmp_path, "run")
    (folder.path / "config.toml").write_text("rank = 3\n")
    with pytest.raises(ConfigError, match=r"config\.toml: unknown setting 'rank'"):
        folder.config()


def test_the_state_is_stamped_with_the_process_and_the_time(tmp_path):
    folder = make(tmp_path, "run")
    folder.write_state(RunState(step=3, started=5.0))
    with folder.hold():
        state = folder.state()
    assert (state.state, state.pid, state.step, state.started) == ("running", os.getpid(), 3, 5.0)
    assert state.heartbeat > 1e9
    assert [path.name for path in folder.path.iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.parametrize(
    "cut", ['{"time": 1, "eve', '{"event": {"a": 1}', "\ud83d".encode("utf8", "surrogatepass")[:2], "", "}"]
)
def test_a_line_that_a_crash_cut_short_spoils_neither_its_neighbours(tmp_path, cut):
    folder = make(tmp_path, "run")
    folder.append(Saved(1, "a path with a\u2028separator and an ü"))
    with (folder.path / "events.jsonl").open("ab") as stream:
        stream.write(cut if isinstance(cut, bytes) else cut.encode())
    assert [event["step"] for event in folder.events()] == [1]
    folder.append(Stepped(2, 0.5, 0.1, 1.0, 7, 0.1, 0.5))
    assert [(event["event"], event["step"]) for event in folder.events()] == [("saved", 1), ("stepped", 2)]


def test_a_folder_without_events_has_none(tmp_path):
    assert list(make(tmp_path, "run").events()) == []


def test_runs_are_listed_the_oldest_first_and_nothing_else_is(tmp_path):
    for age, name in enumerate(["b", "c", "a"]):
        folder = make(tmp_path, name)
        os.utime(folder.path / "config.toml", (1e9 + age, 1e9 + age))
    make(tmp_path, ".d.half-made.tmp")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("")
    assert [run.name for run in list_runs(tmp_path)] == ["b", "c", "a"]
    assert list_runs(tmp_path / "nowhere") == []
    with pytest.raises(ConfigError, match="file: is a file; --runs takes the folder"):
        list_runs(tmp_path / "file")


@pytest.mark.parametrize("name", ["", "poets", "../poet", "notes", "."])
def test_a_run_that_is_not_there(tmp_path, name):
    make(tmp_path / "runs", "poet")
    (tmp_path / "runs" / "notes").mkdir()
    with pytest.raises(ConfigError, match=r"there is no run .*; runs there: poet\."):
        find_run(tmp_path / "runs", name)


def test_a_run_that_is_there(tmp_path):
    folder = make(tmp_path, "poet")
    assert find_run(tmp_path, "poet") == folder


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("train", "train"),
        ("my rows (1)", "my-rows-1"),
        ("a..b", "a-b"),
        (".hidden", "hidden"),
        ("größe", "größe"),
        ("???", "run"),
        ("", "run"),
        ("x" * 200, "x" * 60),
    ],
)
def test_a_name_is_made_that_a_run_may_have(tmp_path, stem, name):
    for made in (name, f"{name}-2", f"{name}-3"):
        assert unused_name(tmp_path, stem) == made
        make(tmp_path, made)
    assert all(run.config().name == run.name for run in list_runs(tmp_path))


def test_a_name_is_not_that_of_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "train").mkdir()
    assert unused_name(tmp_path, "train") == "train-2"
