"""What one process may ask of a run that another one trains."""

import threading
import time
from pathlib import Path

import pytest

from loralab.errors import ConfigError
from loralab.training.control import Control, Wishes
from loralab.training.events import Finished, Interrupted, Paused, Saved, Stepped
from loralab.training.folder import RunFolder
from loralab.training.starting import resume, start

WEIGHTS = "adapter_model.safetensors"


def folder_of(config) -> RunFolder:
    return RunFolder(Path(config.runs) / config.name)


def test_a_stop_saves_and_resume_goes_on_to_the_same_bytes(settings):
    whole = settings(name="whole")
    list(start(whole).events())
    config = settings()
    run = start(config)
    seen = []
    for event in run.events():
        seen.append(event)
        if isinstance(event, Stepped) and event.step == 3:
            Control(run.folder.path).ask(stop=True)
    assert isinstance(seen[-1], Interrupted)
    assert seen[-1].step == 3
    assert run.folder.state().state == "interrupted"
    list(resume("run", config.runs).events())
    found = (folder_of(config).adapter / WEIGHTS).read_bytes()
    assert found == (folder_of(whole).adapter / WEIGHTS).read_bytes()


def test_a_paused_run_waits_and_goes_on(settings):
    config = settings(max_steps=4)
    run = start(config)
    control = Control(run.folder.path)
    waited = []
    for event in run.events():
        if isinstance(event, Stepped) and event.step == 2:
            control.ask(pause=True)
            threading.Thread(target=lambda: (time.sleep(0.5), control.ask(pause=False))).start()
        if isinstance(event, Paused):
            waited.append(event)
            assert run.folder.state().state == "paused"
    assert len(waited) >= 2
    assert isinstance(event, Finished)
    written = [line["event"] for line in run.folder.events()]
    assert written.count("paused") == 1, "it is said again and again, and written once"


def test_a_pause_may_end_in_a_stop(settings):
    run = start(settings(max_steps=4))
    control = Control(run.folder.path)
    for event in run.events():
        if isinstance(event, Stepped) and event.step == 2:
            control.ask(pause=True)
        if isinstance(event, Paused):
            control.ask(stop=True)
    assert isinstance(event, Interrupted)
    # What was asked of the last sitting does not hold for the next.
    assert isinstance(list(resume("run", run.config.runs).events())[-1], Finished)


def test_save_now(settings):
    run = start(settings(save_steps=8))
    steps = []
    for event in run.events():
        if isinstance(event, Stepped) and event.step == 3:
            Control(run.folder.path).ask(saves=1)
        if isinstance(event, Saved):
            steps.append(event.step)
    assert steps == [3, 8]


def test_stop_at_loss_may_be_changed(settings):
    run = start(settings(max_steps=40, save_steps=40))
    for event in run.events():
        if isinstance(event, Stepped) and event.step == 12:
            Control(run.folder.path).ask(stop_at_loss=event.smoothed + 1)
    assert isinstance(event, Finished)
    assert (event.step, event.ended) == (13, "stop_at_loss")


def test_what_is_written_by_hand_and_broken_changes_nothing(tmp_path):
    control = Control(tmp_path)
    assert control.read() == Wishes()
    control.ask(saves=2)
    (tmp_path / "control.json").write_text('{"saves": ')
    assert control.read() == Wishes(saves=2)
    with pytest.raises(ConfigError, match="knows no 'stopp'"):
        control.ask(stopp=True)
