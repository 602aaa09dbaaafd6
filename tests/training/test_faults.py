"""What goes wrong around a run: changed files, lost terminals, two of one name, clocks that jump."""

import itertools
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from loralab.cli.main import main
from loralab.cli.output import Output, Screen
from loralab.cli.views import Length, view
from loralab.errors import CheckpointError, ConfigError
from loralab.training.config import RunConfig
from loralab.training.events import Started, Stepped
from loralab.training.folder import RunFolder
from loralab.training.starting import make_folders, ready, resume, start
from loralab.training.unchanged import settings_to_keep

WEIGHTS = "adapter_model.safetensors"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def folder_of(config: RunConfig) -> RunFolder:
    return RunFolder(Path(config.runs) / config.name)


def weights(config: RunConfig) -> bytes:
    return (folder_of(config).adapter / WEIGHTS).read_bytes()


def stop_at(config: RunConfig, step: int, **how: Any) -> RunFolder:
    """Begin a run, and stop it there."""
    events = start(config, **how).events()
    for event in events:
        if isinstance(event, Stepped) and event.step == step:
            break
    events.close()
    return folder_of(config)


def edit(run: RunFolder, **changes: Any) -> None:
    """Change settings in a run's config.toml by hand; None takes one out."""
    values = run.config().model_dump(exclude_none=True) | changes
    kept = RunConfig(**{name: value for name, value in values.items() if value is not None})
    (run.path / "config.toml").write_text(kept.to_toml())


# changed settings


CHANGES = {
    "r": (8, "r was 4, now 8"),
    "learning_rate": (0.02, r"learning_rate was 0\.01, now 0\.02"),
    "seed": (1, "seed was 0, now 1"),
    "max_steps": (9, "max_steps was 8, now 9"),
    "warmup_steps": (2, "warmup_steps was left out, now 2"),
    "lora_dropout": (0.5, "lora_dropout was 0.0, now 0.5"),
    "micro_batch_size": (2, "micro_batch_size was left out, now 2"),
    "eval_data": ("{data}", "eval_data was left out, now given"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_was_changed_by_hand_is_named(settings, train_file, name):
    value, said = CHANGES[name]
    config = settings()
    run = stop_at(config, 5)
    before = (run.path / "config.toml").read_text()
    edit(run, **{name: str(train_file) if value == "{data}" else value})
    with pytest.raises(CheckpointError, match=said) as caught:
        resume("run", config.runs)
    assert "\n" not in str(caught.value)
    assert run.state().state == "interrupted"
    (run.path / "config.toml").write_text(before)
    assert list(resume("run", config.runs).events())[-1].step == 8


def test_what_may_change_changes_no_byte(settings, tmp_path, train_file):
    whole = settings(name="whole")
    list(start(whole).events())
    config = settings()
    run = stop_at(config, 5)
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / train_file.name
    shutil.copy(train_file, moved)
    (tmp_path / "prompts.txt").write_text("the dog\n")
    edit(
        run,
        data=str(moved),
        save_steps=1,
        keep_checkpoints=5,
        report_to="csv",
        sample_prompts=str(tmp_path / "prompts.txt"),
        sample_steps=2,
        activation_checkpointing=True,
    )
    list(resume("run", config.runs).events())
    assert weights(config) == weights(whole)


def test_all_settings_are_kept_but_those_that_may_change():
    free = set(RunConfig.model_fields) - settings_to_keep(RunConfig()).keys()
    assert {"data", "save_steps", "report_to"} <= free
    assert not free & {"model", "r", "batch_size", "eval_steps", "eval_split", "dtype", "optimizer", "full"}


def test_a_run_of_before_settings_were_kept_goes_on(settings):
    config = settings()
    run = stop_at(config, 5)
    plan = run.plan()
    del plan["settings"]
    (run.path / "plan.json").write_text(json.dumps(plan))
    assert list(resume("run", config.runs).events())[-1].step == 8


# damaged checkpoints


@pytest.mark.parametrize("file", [WEIGHTS, "training.safetensors", "training.json", "adapter_config.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_gives_the_same_bytes(settings, file):
    whole = settings(name="whole", save_steps=2)
    list(start(whole).events())
    config = settings(save_steps=2)
    run = stop_at(config, 5)
    newest = run.checkpoint(5)
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    going = resume("run", config.runs)
    with pytest.raises(CheckpointError, match=r"000005: not a complete checkpoint .*Delete that folder"):
        list(going.events())
    shutil.rmtree(newest)
    list(resume("run", config.runs).events())
    assert weights(config) == weights(whole)


# two of one name


def test_of_two_runs_that_begin_at_once_the_first_one_made_is_kept(settings):
    config = settings()
    first, second = ready(config), ready(settings(r=2))
    make_folders([first])
    with pytest.raises(ConfigError, match=r"there is a run 'run' .*already"):
        make_folders([second])
    assert [path.name for path in Path(config.runs).iterdir()] == ["run"]
    list(first.events())
    assert folder_of(config).config().r == 4


def test_of_two_runs_that_replace_one_at_once_neither_harms_the_other(settings):
    config = settings()
    list(start(config).events())
    first, second = ready(config, overwrite=True), ready(settings(r=2), overwrite=True)
    make_folders([first], overwrite=True)
    events = first.events()
    next(events)
    with pytest.raises(ConfigError, match="run 'run' is running now"):
        make_folders([second], overwrite=True)
    list(events)
    assert folder_of(config).config().r == 4


def test_a_run_that_was_replaced_before_it_began_says_so(settings):
    config = settings()
    first = start(config)
    second = start(settings(r=2), overwrite=True)
    with pytest.raises(ConfigError, match="was replaced by another process before it began"):
        list(first.events())
    list(second.events())
    assert folder_of(config).config().r == 2


def command(config: RunConfig, steps: int = 40) -> list[str]:
    """The command line of a run of so many steps."""
    flags = {"model": config.model, "data": config.data, "runs": config.runs, "name": config.name}
    given = [word for name, value in flags.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "loralab.cli", "train", *given, "--max-steps", str(steps)]


@pytest.mark.slow
def test_two_processes_of_one_name(settings):
    config = settings()
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(command(config), stdout=pipe, stderr=pipe, text=True, env=ONE_THREAD)
        for _ in range(2)
    ]
    ends = [(*process.communicate(timeout=300), process.returncode) for process in both]
    assert sorted(code for *_, code in ends) == [0, 2]
    said = next(err for _, err, code in ends if code == 2)
    assert said.startswith("loralab: ")
    assert said.count("\n") == 1
    assert folder_of(config).state().state == "finished"
    assert [path.name for path in Path(config.runs).iterdir()] == ["run"]
    assert [event["event"] for event in folder_of(config).events()].count("started") == 1


# no room


def test_too_little_memory_is_one_line(settings, capsys, monkeypatch):
    config = settings()
    # What torch itself says where it asks the system for too much.
    monkeypatch.setattr("loralab.training.starting.make_trainees", lambda *_: torch.empty(10**15))
    with pytest.raises(SystemExit, match="2"):
        main(command(config)[3:])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("loralab: out of memory: ")
    assert "--fit" in said
    assert not folder_of(config).path.exists()


# lost terminals


def check_goes_on(config: RunConfig) -> None:
    run = folder_of(config)
    if run.state().state != "finished":
        assert run.state().state == "interrupted"
        list(resume(config.name, config.runs).events())
    assert run.state().state == "finished"


def wait_for_steps(config: RunConfig, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while not any(event["event"] == "stepped" for event in folder_of(config).events()):
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["closed", "gone", "terminal"])
def test_a_run_whose_output_goes_nowhere(settings, how):
    """Closed from the start, as by `>&-`; a reader that has gone, as `| head`; a terminal that was closed."""
    config = settings(name=how)
    far, near = pty.openpty() if how == "terminal" else os.pipe()
    words = command(config, 40 if how == "closed" else 300)
    if how == "closed":
        shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words]
        process = subprocess.Popen(shell, env=ONE_THREAD)
    else:
        process = subprocess.Popen(words, stdout=near, stderr=near, env=ONE_THREAD)
        wait_for_steps(config, process)
        os.close(far)
    os.close(near)
    code = process.wait(timeout=300)
    assert code == 0 if how == "closed" else code in (0, 1, 130)
    check_goes_on(config)


# clocks


def test_a_clock_that_jumps_harms_nothing(settings, monkeypatch):
    whole = settings(name="whole")
    list(start(whole).events())
    config = settings()
    true = time.time
    jumps = (2e9 + (-1) ** number * 1e5 * number for number in itertools.count())
    monkeypatch.setattr(time, "time", jumps.__next__)
    run = stop_at(config, 5)
    times = [event["time"] for event in run.events()]
    assert times != sorted(times)
    list(resume("run", config.runs).events())
    monkeypatch.setattr(time, "time", true)
    assert weights(config) == weights(whole)
    assert run.state().state == "finished"
    seconds = [event["seconds"] for event in run.events() if event["event"] in ("stepped", "finished")]
    assert all(0 <= one < 3600 for one in seconds)


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_time_left_is_never_less_than_none(capsys, monkeypatch, jump):
    monkeypatch.setattr(time, "time", iter(range(0, 10**9, 10**6)).__next__)
    with view({"run": Length(40)}, Screen(Output(plain=True))) as shown:
        shown.show("run", Started(0, 40, 8, 1, 2, "none"))
        for step, at in ((1, 5e8), (2, 5e8 + jump), (4, None)):
            event = Stepped(step, 1.0, 1e-3, 1.0, 10, 0.1, 0.1, 1.0)
            shown.show("run", event, at if jump < 0 and at else None)
    printed = capsys.readouterr().out
    assert "left" in printed
    assert "-" not in printed.replace("1.0e-03", "")
