"""A run from start to finish: what it writes, what it keeps, how it fails and goes on."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loralab.adapters import read_adapter
from loralab.adapters.habits import Habits, read_habits
from loralab.errors import CheckpointError, ConfigError, DataError, TargetError, TrainingError
from loralab.training.checkpoint import latest
from loralab.training.config import RunConfig
from loralab.training.events import Evaluated, Event, Finished, Saved, Started, Stepped
from loralab.training.folder import RunFolder
from loralab.training.loop import evaluate
from loralab.training.starting import resume, start

WEIGHTS = "adapter_model.safetensors"
Settings = Callable[..., RunConfig]


def train(config: RunConfig) -> list[Event]:
    return list(start(config).events())


def folder_of(config: RunConfig) -> RunFolder:
    return RunFolder(Path(config.runs) / config.name)


def of_kind(events: list[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def no_constants(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def read_events(folder: RunFolder) -> list[dict[str, Any]]:
    lines = (folder.path / "events.jsonl").read_text(encoding="utf8").splitlines()
    return [json.loads(line, parse_constant=no_constants) for line in lines]


def test_events_come_in_order_and_stand_in_the_folder_before_they_are_seen(settings, eval_file):
    config = settings(eval_data=str(eval_file), eval_steps=3, save_steps=4)
    run = start(config)
    seen = []
    for event in run.events():
        seen.append(event)
        written = read_events(run.folder)
        assert len(written) == len(seen)
        assert {key: value for key, value in written[-1].items() if key != "time"} == event.to_dict()
    kinds = [type(event).__name__ for event in seen]
    assert kinds[0] == "Started"
    assert kinds[-1] == "Finished"
    assert [event.step for event in of_kind(seen, Stepped)] == list(range(1, 9))
    assert [event.step for event in of_kind(seen, Evaluated)] == [3, 6, 8]
    best = [event.step for event in of_kind(seen, Evaluated) if event.best]
    assert [event.step for event in of_kind(seen, Saved)] == sorted({4, 8, *best})
    assert list(run.folder.events()) == read_events(run.folder)


def test_what_the_events_say_is_true(settings, eval_file):
    config = settings(eval_data=str(eval_file), lora_dropout=0.1)
    run = start(config)
    with run.model.disable_adapter():
        base_loss, tokens = evaluate(run.model, run.task, run.eval_data.examples, 1)
    events = list(run.events())
    first, last = events[0], events[-1]
    assert isinstance(first, Started)
    assert isinstance(last, Finished)
    assert (first.step, first.steps, first.examples, first.isolation) == (0, 8, 23, "documents")
    assert (first.trainable, first.parameters) == run.model.get_nb_trainable_parameters()
    assert last.base_loss == pytest.approx(base_loss, rel=1e-6)
    loss, again = evaluate(run.model, run.task, run.eval_data.examples, 1)
    assert of_kind(events, Evaluated)[-1].loss == pytest.approx(loss, rel=1e-6)
    assert tokens == again == of_kind(events, Evaluated)[-1].tokens
    assert last.loss == min(event.loss for event in of_kind(events, Evaluated))
    assert last.loss < base_loss
    assert last.seconds == pytest.approx(sum(event.seconds for event in of_kind(events, Stepped)))


def test_a_finished_run_s_folder(settings, eval_file):
    config = settings(eval_data=str(eval_file))
    train(config)
    folder = folder_of(config)
    names = {path.name for path in folder.path.iterdir()}
    assert names == {
        *("run.json", "config.toml", "plan.json", "events.jsonl", "rejected.jsonl", "effect.json"),
        *("checkpoints", "adapter", ".lock"),
    }
    assert {path.name for path in folder.adapter.iterdir()} == {
        *("adapter_config.json", WEIGHTS, "loralab.json", "README.md")
    }
    state = folder.state()
    assert (state.state, state.step, state.steps) == ("finished", 8, 8)
    assert state.started <= state.heartbeat
    found = {"cutoff_length": 128, "target_modules": "all-linear, embeddings"}
    assert folder.config() == config.model_copy(update=found)
    plan = folder.plan()
    assert plan["examples"] == 23
    assert plan["format"] == "completion"
    assert plan["trained_tokens"] < plan["tokens"]
    assert read_habits(folder.adapter) == Habits("completion", "plain")
    card = (folder.adapter / "README.md").read_text()
    assert f"base_model: {config.model}" in card
    assert "23 examples" in card


def test_the_adapter_is_that_of_the_best_evaluation(settings, eval_file, tiny, tmp_path):
    """Training on rows of one word unlearns the others, so the last step is not the best."""
    data = tiny.write_jsonl(tmp_path / "one.jsonl", [{"prompt": "the", "completion": "dog dog"}])
    config = settings(
        data=str(data), eval_data=str(eval_file), learning_rate=0.05, max_steps=12, eval_steps=1, batch_size=1
    )
    events = train(config)
    losses = {event.step: event.loss for event in of_kind(events, Evaluated)}
    best = min(losses, key=losses.__getitem__)
    assert best != 12
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.chosen_step, finished.loss) == (best, losses[best])
    folder = folder_of(config)
    assert (folder.adapter / WEIGHTS).read_bytes() == (folder.checkpoint(best) / WEIGHTS).read_bytes()
    assert (folder.adapter / WEIGHTS).read_bytes() != (folder.checkpoint(12) / WEIGHTS).read_bytes()


def test_without_validation_data_the_last_step_is_taken(settings):
    config = settings()
    finished = train(config)[-1]
    assert isinstance(finished, Finished)
    assert (finished.chosen_step, finished.base_loss, finished.loss) == (8, None, None)
    folder = folder_of(config)
    assert (folder.adapter / WEIGHTS).read_bytes() == (folder.checkpoint(8) / WEIGHTS).read_bytes()


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_checkpoints_are_kept_and_the_best_besides(settings, eval_file, tiny, tmp_path, keep):
    data = tiny.write_jsonl(tmp_path / "one.jsonl", [{"prompt": "the", "completion": "dog dog"}])
    config = settings(
        data=str(data),
        eval_data=str(eval_file),
        keep_checkpoints=keep,
        eval_steps=1,
        learning_rate=0.05,
        max_steps=12,
        batch_size=1,
    )
    finished = train(config)[-1]
    assert isinstance(finished, Finished)
    kept = {int(path.name) for path in folder_of(config).checkpoints.iterdir()}
    assert finished.chosen_step < 12 - keep
    assert kept == {finished.chosen_step, *range(13 - keep, 13)}


def test_the_same_settings_give_the_same_bytes_and_another_seed_does_not(settings):
    adapters = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        config = settings(name=name, seed=seed, lora_dropout=0.1)
        torch.manual_seed(hash(name) % 1000)
        train(config)
        adapters.append((folder_of(config).adapter / WEIGHTS).read_bytes())
    assert adapters[0] == adapters[1] != adapters[2]


# failing


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(settings):
    config = settings(learning_rate=1e30, lr_scheduler="constant", warmup_steps=0, save_steps=1)
    with pytest.raises(TrainingError, match=r"not finite at step 2, with learning rate 1\.00e\+30") as caught:
        train(config)
    folder = folder_of(config)
    state = folder.state()
    assert (state.state, state.step, state.note) == ("failed", 1, str(caught.value))
    assert not folder.adapter.exists()
    kept = latest(folder.checkpoints)
    assert kept == folder.checkpoint(1)
    assert all(tensor.isfinite().all() for tensor in read_adapter(kept).tensors.values())
    assert [event["event"] for event in read_events(folder)] == ["started", "stepped", "saved"]


def test_a_validation_loss_that_is_not_finite_stops_the_run_too(settings, eval_file):
    config = settings(
        learning_rate=1e36, lr_scheduler="constant", warmup_steps=0, eval_data=str(eval_file), eval_steps=1
    )
    with pytest.raises(TrainingError, match="validation loss is not finite at step 1"):
        train(config)
    folder = folder_of(config)
    assert folder.state().state == "failed"
    assert [event["event"] for event in read_events(folder)] == ["started"]
    assert latest(folder.checkpoints) is None


def test_an_adapter_that_changes_nothing_is_an_error(settings):
    config = settings(learning_rate=1e-300)
    with pytest.raises(TrainingError, match="changes nothing"):
        train(config)
    folder = folder_of(config)
    assert folder.state().state == "failed"
    assert not folder.adapter.exists()


def test_a_huge_loss_has_a_perplexity_that_is_a_number(settings, tiny, tmp_path, eval_file):
    """A base whose scores are a thousand times too large is wrong with great certainty."""
    model = tiny.make_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    model.save_pretrained(tmp_path / "loud")
    tiny.make_tokenizer().save_pretrained(tmp_path / "loud")
    config = settings(model=str(tmp_path / "loud"), eval_data=str(eval_file), max_steps=2)
    finished = train(config)[-1]
    assert isinstance(finished, Finished)
    assert finished.base_loss is not None
    assert finished.base_loss > math.log(1e308)
    assert "perplexity 1014232" in (folder_of(config).adapter / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": ""}, ConfigError, "no model was given; add --model"),
        ({"data": ""}, ConfigError, "no data was given; add --data"),
        ({"data": "none.jsonl"}, DataError, "none.jsonl: no such file"),
        ({"eval_data": "none.jsonl"}, DataError, "none.jsonl: no such file"),
        ({"cutoff_length": 129}, ConfigError, "129.* has 128 positions"),
        ({"cutoff_length": 2}, DataError, "none of 23 rows can be trained on: 23 longer than cutoff_length"),
        ({"target_modules": "q_prj"}, TargetError, "Did you mean 'q_proj'"),
    ],
)
def test_nothing_is_written_when_a_check_fails(settings, changes, error, words):
    config = settings(**changes)
    with pytest.raises(error, match=words) as caught:
        start(config)
    assert "\n" not in str(caught.value)
    assert not Path(config.runs).exists()


def test_rejected_rows_are_counted_and_kept(settings, tiny, tmp_path):
    rows = [
        *tiny.make_rows(3),
        {"prompt": "the", "completion": "dog " * 200},
        {"prompt": "a", "completion": " "},
    ]
    config = settings(data=str(tiny.write_jsonl(tmp_path / "mixed.jsonl", rows)))
    run = start(config)
    assert run.folder.plan()["rejected"] == 2
    assert run.folder.plan()["examples"] == 3
    rejected = [json.loads(line) for line in (run.folder.path / "rejected.jsonl").read_text().splitlines()]
    assert [entry["source"] for entry in rejected] == ["mixed.jsonl:4", "mixed.jsonl:5"]
    assert "longer than cutoff_length 128" in rejected[0]["reason"]
    assert rejected[1]["row"] == rows[4]


# names


def test_a_run_is_never_replaced_unasked(settings, eval_file):
    config = settings()
    train(config)
    before = (folder_of(config).adapter / WEIGHTS).read_bytes()
    with pytest.raises(
        ConfigError, match=r"there is a run 'run' .*'loralab resume run'.*--name.*--overwrite"
    ):
        start(config)
    assert (folder_of(config).adapter / WEIGHTS).read_bytes() == before


def test_overwriting_starts_from_nothing_with_other_data_too(settings, eval_file):
    train(settings())
    config = settings(data=str(eval_file), max_steps=3)
    run = start(config, overwrite=True)
    assert [path.name for path in Path(config.runs).iterdir()] == ["run"]
    assert {path.name for path in run.folder.path.iterdir()} == {"config.toml", "plan.json", "rejected.jsonl"}
    assert list(run.events())[-1].step == 3


def test_overwriting_with_faulty_settings_loses_nothing(settings):
    config = settings()
    train(config)
    with pytest.raises(TargetError):
        start(settings(target_modules="q_prj"), overwrite=True)
    assert folder_of(config).state().state == "finished"


def test_overwriting_spares_a_folder_that_is_no_run(settings):
    config = settings(name="thesis")
    precious = folder_of(config).path / "chapter1.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="thesis exists and is no run"):
            start(config, overwrite=overwrite)
    assert precious.read_text() == "years of work"


def test_a_name_is_made_from_the_data_and_can_be_resumed(settings, train_file, tmp_path):
    data = tmp_path / "my rows (v1..2).jsonl"
    data.write_bytes(train_file.read_bytes())
    config = settings(name="", data=str(data))
    names = []
    for _ in range(2):
        run = start(config)
        names.append(run.folder.name)
        assert run.config.name == run.folder.name
        assert run.folder.config() == run.config
        resume(run.folder.name, config.runs)
    assert names == ["my-rows-v1-2", "my-rows-v1-2-2"]


# stopping and going on


def test_a_run_that_is_closed_early_saves_and_goes_on_to_the_same_bytes(settings, eval_file):
    changes = {"eval_data": str(eval_file), "lora_dropout": 0.1, "micro_batch_size": 2}
    changes |= {"eval_steps": 2, "save_steps": 3, "max_steps": 5}
    whole = settings(name="whole", **changes)
    train(whole)
    expected = (folder_of(whole).adapter / WEIGHTS).read_bytes()
    kinds = [event["event"] for event in read_events(folder_of(whole))]
    assert kinds[:5] == ["started", "stepped", "stepped", "evaluated", "saved"]
    for stop in (0, 1, 2, 3, 4, 5, len(kinds) - 2, len(kinds) - 1):
        config = settings(name=f"stop-{stop}", **changes)
        run = start(config)
        events = run.events()
        for _ in range(stop):
            event = next(events)
        events.close()
        state = run.folder.state()
        if stop == 0:
            assert state.step == 0
        else:
            assert (state.state, state.step) == ("interrupted", event.step)
            saved = latest(run.folder.checkpoints)
            assert saved == (run.folder.checkpoint(event.step) if event.step else None)
        assert list(resume(config.name, config.runs).events())[-1].step == 5
        assert (run.folder.adapter / WEIGHTS).read_bytes() == expected, f"closed after event {stop}"


def test_a_checkpoint_that_cannot_be_written_while_closing_is_told(settings):
    run = start(settings(save_steps=8))
    events = run.events()
    for _ in range(3):
        next(events)
    run.folder.checkpoints.write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="cannot be written"):
        events.close()
    assert run.folder.state().state == "failed"


def test_a_finished_run_is_not_resumed(settings):
    config = settings()
    train(config)
    with pytest.raises(ConfigError, match=r"run 'run' is finished; its adapter is .*adapter"):
        resume("run", config.runs)


def test_an_unknown_run_is_not_resumed(settings):
    config = settings()
    start(config)
    with pytest.raises(ConfigError, match=r"there is no run 'rum' in .*runs there: run\. Did you mean 'run'"):
        resume("rum", config.runs)


def test_a_running_run_is_neither_resumed_nor_overwritten(settings):
    config = settings()
    events = start(config).events()
    next(events)
    with pytest.raises(ConfigError, match="run 'run' is running now, as process"):
        resume("run", config.runs)
    with pytest.raises(ConfigError, match="run 'run' is running now, as process"):
        start(config, overwrite=True)
    events.close()


@pytest.mark.parametrize("which", ["data", "eval_data"])
def test_a_run_whose_data_has_changed_does_not_go_on(settings, tiny, tmp_path, which):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("data", "eval_data")}
    for seed, path in enumerate(files.values()):
        tiny.write_jsonl(path, tiny.make_rows(9, seed))
    config = settings(**{name: str(path) for name, path in files.items()})
    events = start(config).events()
    for _ in range(4):
        next(events)
    events.close()
    before = files[which].read_bytes()
    files[which].write_bytes(before.replace(b"dog", b"cat"))
    with pytest.raises(CheckpointError, match=f"{which}.jsonl has changed since run 'run' began") as caught:
        resume("run", config.runs)
    assert "\n" not in str(caught.value)
    files[which].write_bytes(before)
    assert list(resume("run", config.runs).events())[-1].step == 8


def test_a_failed_run_can_be_tried_again(settings):
    config = settings(learning_rate=1e30, save_steps=1)
    with pytest.raises(TrainingError):
        train(config)
    again = resume("run", config.runs)
    assert again.checkpoint == again.folder.checkpoint(1)
    with pytest.raises(TrainingError, match="step 2"):
        list(again.events())
