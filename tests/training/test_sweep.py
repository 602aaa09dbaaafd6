"""Sweeps: a trial is the run it would be alone, the best is kept, and nothing is lost on the way."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from loralab.errors import CheckpointError, ConfigError, TargetError, TrainingError
from loralab.training.config import RunConfig, check, read_toml
from loralab.training.control import Control
from loralab.training.events import Stepped
from loralab.training.folder import RunFolder
from loralab.training.starting import start
from loralab.training.sweep.opening import How, open_sweep
from loralab.training.sweep.space import read_space

pytest.importorskip("optuna", reason="the sweeps' optuna is not installed")

from loralab.training.sweep.asking import Asking
from loralab.training.sweep.trials import Begun, Ended, Happened, Sweep

TENSORS = "adapter_model.safetensors"


@pytest.fixture
def sweep(settings: Callable[..., RunConfig], eval_file: Path) -> Callable[..., Sweep]:
    """Return a sweep of small runs, with the settings and flags that the test gives."""

    def make(flags: dict[str, str], how: How = How(), **changes: Any) -> Sweep:  # noqa: B008
        config = settings(eval_data=str(eval_file), **changes)
        values = config.model_dump(exclude_none=True, exclude={"name"}, exclude_unset=True)
        return Sweep(open_sweep(read_space(values, flags), "s", how))

    return make


def finish(sweep: Sweep) -> list[Any]:
    """Train all trials and return what happened."""
    return list(sweep.events())


def stepped(event: object, trial: str) -> bool:
    """Return whether a trial has made a step."""
    return isinstance(event, Happened) and event.trial == trial and isinstance(event.event, Stepped)


@pytest.mark.slow
def test_every_trial_is_byte_for_byte_the_run_it_would_be_alone(sweep: Callable[..., Sweep]) -> None:
    flags = {"r": "2,4", "lora_dropout": "0,0.2", "init": "pissa,kaiming"}
    made = sweep(flags, activation_checkpointing=True)
    finish(made)
    folder = made.opened.folder
    for row in made.results.rows:
        assert row.state in ("finished", "pruned")
        if row.state == "finished":
            config = RunFolder(folder / row.trial).config()
            alone = start(config.model_copy(update={"runs": str(folder.parent), "name": row.trial}))
            list(alone.events())
            found = (folder / row.trial / "adapter" / TENSORS).read_bytes()
            assert found == (alone.folder.adapter / TENSORS).read_bytes(), row


def test_the_best_is_kept_and_its_settings_train_it_again(sweep: Callable[..., Sweep]) -> None:
    made = sweep({"learning_rate": "1e-4,1e-2", "use_dora": "true,false"})
    finish(made)
    folder, best = made.opened.folder, made.results.best
    assert best is not None
    assert best.loss == min(row.loss for row in made.results.rows if row.loss is not None)
    kept = (folder / "adapter" / TENSORS).read_bytes()
    assert kept == (folder / best.trial / "adapter" / TENSORS).read_bytes()
    alone = start(check(read_toml(folder / "best.toml")))
    list(alone.events())
    assert kept == (alone.folder.adapter / TENSORS).read_bytes()
    assert alone.folder.path.parent == folder.parent
    for row in made.results.rows:
        assert (folder / row.trial / "checkpoints").exists() == (row == best)
        assert (folder / row.trial / "adapter" / TENSORS).exists() == (row.state == "finished")


def test_keep_all_keeps_the_checkpoints_of_all(sweep: Callable[..., Sweep]) -> None:
    made = sweep({"r": "2,4"}, How(keep_all=True))
    finish(made)
    assert all(any((made.opened.folder / row.trial / "checkpoints").iterdir()) for row in made.results.rows)


@pytest.mark.slow
def test_trials_that_train_together_come_to_the_same_losses(
    sweep: Callable[..., Sweep], tmp_path: Path
) -> None:
    flags = {"r": "2,4", "init": "kaiming,pissa"}
    alone = sweep(flags)
    finish(alone)
    together = sweep(flags, How(together=4), runs=str(tmp_path / "together"))
    happened = finish(together)
    kinds = [type(event) for event in happened]
    assert kinds[:3] == [Begun, Begun, Happened]  # PiSSA changes the base, so those go by themselves
    losses = [{row.trial: row.loss for row in made.results.rows} for made in (alone, together)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_a_trial_far_behind_is_pruned_alone_and_among_others(
    sweep: Callable[..., Sweep], tmp_path: Path
) -> None:
    # Four that learn, then two that hardly do.
    flags = {"learning_rate": "1e-2,1.1e-2,1.2e-2,1.3e-2,1e-6,2e-6"}
    for together in (1, 2):
        runs = str(tmp_path / str(together))
        made = sweep(flags, How(together=together), eval_steps=2, runs=runs)
        finish(made)
        pruned = [row for row in made.results.rows if row.state == "pruned"]
        assert {row.values["learning_rate"] for row in pruned} == {1e-6, 2e-6}
        assert all(3 <= row.step < 8 and row.loss is not None for row in pruned)
        assert made.results.rows[-1].state == "pruned"


@pytest.mark.slow
def test_a_sweep_that_was_stopped_goes_on_and_comes_to_the_same(
    sweep: Callable[..., Sweep], tmp_path: Path
) -> None:
    flags = {"r": "2,4,8"}
    whole = sweep(flags)
    finish(whole)
    where = {"runs": str(tmp_path / "stopped")}
    stopped = sweep(flags, **where)
    with closing(stopped.events()) as events:
        for event in events:
            if stepped(event, "trial-001"):
                break
    assert [row.state for row in stopped.results.rows] == ["finished", "running"]
    again = sweep(flags, **where)
    happened = finish(again)
    assert [event.trial for event in happened if isinstance(event, Begun)] == ["trial-001", "trial-002"]
    assert again.results.rows == whole.results.rows
    for row in whole.results.rows:
        assert (whole.opened.folder / row.trial / "adapter" / TENSORS).read_bytes() == (
            again.opened.folder / row.trial / "adapter" / TENSORS
        ).read_bytes()


def test_a_finished_sweep_goes_on_with_more_trials_and_no_others(sweep: Callable[..., Sweep]) -> None:
    flags = {"lora_alpha": "8..64"}
    finish(sweep(flags, How(trials=2)))
    assert finish(sweep(flags, How(trials=2))) == []
    more = sweep(flags, How(trials=3))
    assert [event.number for event in finish(more) if isinstance(event, Begun)] == [3]


def test_a_run_that_finished_untold_is_not_trained_again(
    sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(Exception):
        pass

    def die(*_: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Asking, "finish", die)
        with pytest.raises(Died):
            finish(sweep({"r": "2,4"}))
    happened = finish(sweep({"r": "2,4"}))
    assert isinstance(happened[0], Ended)
    assert [event.trial for event in happened if isinstance(event, Begun)] == ["trial-001"]


@pytest.mark.slow
def test_a_trial_that_fails_is_written_down_and_the_others_go_on(
    sweep: Callable[..., Sweep], tmp_path: Path
) -> None:
    flags = {"learning_rate": "1e-2,1e30", "seed": "0,1"}
    for together in (1, 4):
        made = sweep(flags, How(together=together), runs=str(tmp_path / str(together)), max_grad_norm=1e30)
        finish(made)
        states = {tuple(row.values.values()): row.state for row in made.results.rows}
        assert states == {
            (1e-2, 0): "finished",
            (1e-2, 1): "finished",
            (1e30, 0): "failed",
            (1e30, 1): "failed",
        }
        assert "not finite" in made.results.rows[-1].note
    alone = sweep({"learning_rate": "1e29,1e30"}, runs=str(tmp_path / "all"), max_grad_norm=1e30)
    with pytest.raises(TrainingError, match=r"all trials failed; the first: .*not finite"):
        finish(alone)


def test_a_value_that_this_model_has_no_room_for_fails_alone(sweep: Callable[..., Sweep]) -> None:
    made = sweep({"last_layers": "1,99"})
    finish(made)
    assert [row.state for row in made.results.rows] == ["finished", "failed"]
    assert "last_layers is 99" in made.results.rows[1].note


def test_what_is_wrong_with_all_is_told_before_the_folder_is_made(sweep: Callable[..., Sweep]) -> None:
    made = sweep({"r": "2,4"}, target_modules="nothing_like_it")
    with pytest.raises(TargetError, match="nothing_like_it"):
        finish(made)
    assert not made.opened.folder.exists()


def test_a_trial_that_is_told_to_stop_counts_as_pruned(sweep: Callable[..., Sweep]) -> None:
    made = sweep({"r": "2,4"})
    with closing(made.events()) as events:
        for event in events:
            if stepped(event, "trial-000"):
                Control(made.opened.folder / "trial-000").ask(stop=True)
    states = {row.trial: (row.state, row.step) for row in made.results.rows}
    assert states == {"trial-000": ("pruned", 1), "trial-001": ("finished", 8)}


@pytest.mark.slow
def test_going_on_with_other_settings_or_data_is_refused(
    sweep: Callable[..., Sweep], tmp_path: Path, eval_file: Path
) -> None:
    held_out = tmp_path / "held.jsonl"
    held_out.write_bytes(eval_file.read_bytes())
    values = {"data": str(eval_file)}
    finish(sweep({"r": "2,4", "eval_data": str(held_out)}, How(trials=1), **values))
    with pytest.raises(ConfigError, match=r"r was 2,4, now 2,8; batch_size was 4, now 2.*--overwrite"):
        sweep({"r": "2,8", "eval_data": str(held_out)}, batch_size=2, **values)
    held_out.write_bytes(eval_file.read_bytes().splitlines(True)[0])
    with pytest.raises(CheckpointError, match="not that of the trials before"):
        finish(sweep({"r": "2,4", "eval_data": str(held_out)}, **values))
    anew = sweep({"r": "2,4", "eval_data": str(held_out)}, How(overwrite=True), **values)
    finish(anew)
    assert [row.state for row in anew.results.rows] == ["finished", "finished"]


def test_a_folder_that_is_no_sweep_is_left_alone(sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    (tmp_path / "runs" / "s").mkdir(parents=True)
    (tmp_path / "runs" / "s" / "thesis.txt").write_text("mine")
    for how in (How(), How(overwrite=True)):
        with pytest.raises(ConfigError, match="exists and is no sweep"):
            sweep({"r": "2,4"}, how)
    with pytest.raises(ConfigError, match="--trials is 0"):
        sweep({"r": "2,4"}, How(trials=0), runs=str(tmp_path / "other"))


def test_a_full_fine_tune_can_be_swept(
    sweep: Callable[..., Sweep], settings: Callable[..., RunConfig]
) -> None:
    made = sweep({"learning_rate": "1e-3,1e-2"}, full=True, r=16)
    finish(made)
    folder, best = made.opened.folder, made.results.best
    assert best is not None
    assert (folder / "model" / "model.safetensors").is_file()
    assert [(folder / row.trial / "model").exists() for row in made.results.rows] == [True, False]


def test_the_table_says_what_came_of_each_trial(sweep: Callable[..., Sweep]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    made = sweep({"r": "2,4", "learning_rate": "1e-3..1e-2:log"}, How(trials=3))
    finish(made)
    assert made.results.draw()
    folder = made.opened.folder
    table = json.loads((folder / "sweep.json").read_text())
    assert table["swept"] == {"r": "2,4", "learning_rate": "0.001..0.01:log"}
    assert [row["loss"] for row in table["rows"]] == sorted(row["loss"] for row in table["rows"])
    assert table["best"] == table["rows"][0]["trial"]
    text = (folder / "sweep.md").read_text()
    assert all(row["trial"] in text for row in table["rows"])
    assert "sweep.svg" in text
    picture = (folder / "sweep.svg").read_text()
    assert "<svg" in picture
