"""`loralab change` says what a run will do of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from loralab.training.control import Control, Wishes
from loralab.training.events import Started, Stepped
from loralab.training.folder import RunFolder, RunState


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    """A running run of twenty steps that has made none."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("runs/poet"))
    folder.path.mkdir(parents=True)
    (folder.path / "config.toml").write_text('name = "poet"\nmodel = "tiny"\ndata = "x.jsonl"\n')
    folder.append(Started(0, 20, 9, 10, 100, "rows"))
    with folder.hold():
        folder.write_state(RunState(steps=20, started=1.0))
        yield folder


def step(folder: RunFolder, number: int, smoothed: float) -> None:
    folder.append(Stepped(number, 9.0, 1e-3, 0.5, 64, 0.5, 1.0, smoothed))


def test_a_goal_is_set_beside_the_loss_of_now(run: RunFolder, loralab) -> None:
    words = ("change", "poet", "--stop-at-loss", "2.5", "--plain")
    assert loralab(*words).out == "run 'poet' ends at a smoothed loss of 2.5.\n"
    step(run, 3, 2.61)
    now = "run 'poet' ends at a smoothed loss of 2.5; it is 2.610 now"
    assert loralab(*words).out == f"{now}.\n"
    assert Control(run.path).read() == Wishes(stop_at_loss=2.5)


def test_a_goal_that_is_reached_ends_the_run_at_once(run: RunFolder, loralab) -> None:
    words = ("change", "poet", "--stop-at-loss", "2.5", "--plain")
    step(run, 3, 2.5)
    assert loralab(*words).out.endswith("it is 2.500 now, so the run ends with step 10.\n")
    step(run, 12, 1.75)
    assert loralab(*words).out.endswith("it is 1.750 now, so the run ends with the next step.\n")
    both = loralab(*words, "--save").out
    assert both.startswith("run 'poet' saves after this step and ends at a smoothed loss of 2.5; it is 1.750")


def test_what_cannot_be_changed(run: RunFolder, loralab) -> None:
    assert loralab("change", "poet").err.startswith("loralab: nothing to change was named; ")
    said = loralab("change", "poet", "--stop-at-loss", "0").err
    assert said == "loralab: stop_at_loss is 0.0; expected a loss above 0.\n"
