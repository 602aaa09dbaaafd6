"""Runs that train at once: each comes out as it would alone, and is a run like any other."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from loralab.adapters import read_adapter
from loralab.data.batch import Isolation
from loralab.errors import CheckpointError, ConfigError, DataError, TargetError, TrainingError
from loralab.training import starting
from loralab.training.checkpoint import latest
from loralab.training.config import RunConfig
from loralab.training.events import Event, Failed, Finished, Sampled, Saved, Started, Stepped
from loralab.training.folder import RunFolder, list_runs
from loralab.training.many import ManyRuns, start_together
from loralab.training.starting import resume, start

Settings = Callable[..., RunConfig]


def folder_of(config: RunConfig) -> RunFolder:
    return RunFolder(Path(config.runs) / config.name)


def by_run(many: ManyRuns) -> dict[str, list[Event]]:
    """Train, and return the events of each run."""
    events: dict[str, list[Event]] = {run.folder.name: [] for run in many.runs}
    for name, event in many.events():
        events[name].append(event)
    return events


def under(configs: Sequence[RunConfig], runs: str) -> list[RunConfig]:
    """The same runs in another folder."""
    return [config.model_copy(update={"runs": str(Path(config.runs).parent / runs)}) for config in configs]


def told(folder: RunFolder) -> list[dict[str, Any]]:
    """The events without what depends on the clock and the folder."""
    left_out = ("time", "seconds", "path", "peak_memory")
    return [{k: v for k, v in event.items() if k not in left_out} for event in folder.events()]


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        if value.dtype == torch.uint8:  # of the random generators
            continue
        scale = float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4 * scale, msg=name)


def assert_same_runs(together: RunFolder, alone: RunFolder) -> None:
    """Two finished runs have the same folder, numbers to rounding."""
    ones, others = told(together), told(alone)
    assert [list(event) for event in ones] == [list(event) for event in others]
    for one, other in zip(ones, others, strict=True):
        for key, value in other.items():
            expected = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert one[key] == expected, (one["step"], key)
    plans = [{key: v for key, v in f.plan().items() if key != "memory"} for f in (together, alone)]
    assert plans[0] == plans[1]
    places = [sorted(str(p.relative_to(f.path)) for p in f.path.rglob("*")) for f in (together, alone)]
    assert places[0] == places[1]
    for path in together.path.rglob("*.safetensors"):
        assert_close(load_file(path), load_file(alone.path / path.relative_to(together.path)))


@pytest.fixture
def varied(settings: Settings, tiny: Any, eval_file: Path, tmp_path: Path) -> list[RunConfig]:
    """Four runs that differ in whatever may: data, length, rank, targets, schedule, batch."""
    data = [tiny.write_jsonl(tmp_path / f"rows{n}.jsonl", tiny.make_rows(9 + n, n)) for n in range(4)]
    changes: list[dict[str, Any]] = [
        {"r": 4, "max_steps": 10, "save_steps": 4},
        {"r": 2, "lora_alpha": 3, "lr_scheduler": "linear", "eval_data": str(eval_file), "eval_steps": 3},
        {"target_modules": "q_proj,down_proj", "batch_size": 6, "micro_batch_size": 2, "max_grad_norm": 0.1},
        {"learning_rate": 3e-3, "weight_decay": 0.1, "warmup_steps": 5, "batch_size": 3, "cutoff_length": 40},
    ]
    lengths = (10, 13, 11, 17)
    return [
        settings(**{"name": f"v{n}.x", "data": str(data[n]), "seed": n, "max_steps": lengths[n]} | changes[n])
        for n in range(4)
    ]


def test_each_run_comes_out_as_it_would_alone(varied):
    alone = under(varied, "alone")
    for config in alone:
        list(start(config).events())
    events = by_run(start_together(varied))
    for config, single in zip(varied, alone, strict=True):
        assert_same_runs(folder_of(config), folder_of(single))
        assert folder_of(config).state().state == "finished"
        assert folder_of(config).config() == folder_of(single).config().model_copy(
            update={"runs": config.runs}
        )
        own = events[config.name]
        assert [event.to_dict() for event in own] == [
            {key: value for key, value in event.items() if key != "time"}
            for event in folder_of(config).events()
        ]
        assert (type(own[0]), type(own[-1])) == (Started, Finished)


@pytest.mark.parametrize("isolation", ["positions", "rows"])
def test_in_rows_of_their_own_too(varied, monkeypatch, isolation: Isolation):
    """As on a GPU, or on a model whose attention is not known."""
    monkeypatch.setattr("loralab.training.prepare.find_isolation", lambda *_: isolation)
    alone = under(varied, "alone")
    for config in alone:
        list(start(config).events())
    many = start_together(varied)
    assert {run.task.isolation for run in many.runs} == {isolation}
    by_run(many)
    for config, single in zip(varied, alone, strict=True):
        assert_same_runs(folder_of(config), folder_of(single))


def test_with_activations_computed_again_and_with_a_head_that_is_adapted(settings):
    """What the backward pass computes again must run with the same adapters."""
    configs = [
        settings(name="a", activation_checkpointing=True),
        settings(name="b", activation_checkpointing=True, target_modules="q_proj,lm_head", seed=1),
    ]
    alone = under(configs, "alone")
    for config in alone:
        list(start(config).events())
    by_run(start_together(configs))
    for config, single in zip(configs, alone, strict=True):
        assert_same_runs(folder_of(config), folder_of(single))


def test_one_run_is_the_plain_case(settings):
    config = settings()
    (alone,) = under([config], "alone")
    list(start(alone).events())
    assert list(by_run(start_together([config]))) == ["run"]
    assert_same_runs(folder_of(config), folder_of(alone))


def test_prompts_are_answered_as_alone_by_the_base_first(settings, tmp_path):
    (tmp_path / "prompts.txt").write_text("the dog\na tree\n")
    asked = {"sample_prompts": str(tmp_path / "prompts.txt"), "max_steps": 4, "sample_steps": 2}
    configs = [settings(name="a", **asked), settings(name="b", seed=1, max_steps=4)]
    alone = under(configs, "alone")
    for config in alone:
        list(start(config).events())
    events = by_run(start_together(configs))
    assert [event.step for event in events["a"] if isinstance(event, Sampled)] == [0, 0, 2, 2, 4, 4]
    for config, single in zip(configs, alone, strict=True):
        assert_same_runs(folder_of(config), folder_of(single))


def test_dropout_is_each_run_s_own(settings):
    """Only the run without it is the same as alone."""
    configs = [settings(name="wet", lora_dropout=0.5, seed=1), settings(name="dry")]
    wet, dry = under(configs, "alone")
    for config in (wet, dry):
        list(start(config).events())
    by_run(start_together(configs))
    assert_same_runs(folder_of(configs[1]), folder_of(dry))
    one, other = (
        load_file(folder_of(config).checkpoint(8) / "adapter_model.safetensors")
        for config in (wet, configs[0])
    )
    assert not all(torch.allclose(one[name], other[name], rtol=0.1) for name in one)


def test_every_event_is_in_the_folder_before_it_is_seen(varied):
    many = start_together(varied)
    seen = dict.fromkeys((run.folder.name for run in many.runs), 0)
    for name, event in many.events():
        folder = next(run.folder for run in many.runs if run.folder.name == name)
        written = list(folder.events())[seen[name]]
        assert {key: value for key, value in written.items() if key != "time"} == event.to_dict()
        seen[name] += 1


# stopping


@pytest.mark.parametrize("stop", [4, 9, 30])
def test_runs_that_are_stopped_together_are_resumed_alone(varied, stop):
    alone = under(varied, "alone")
    for config in alone:
        list(start(config).events())
    events = start_together(varied).events()
    last = {}
    for _ in range(stop):
        name, event = next(events)
        last[name] = event.step
    events.close()
    for config, single in zip(varied, alone, strict=True):
        folder = folder_of(config)
        state = folder.state()
        if state.state != "finished":
            assert state.state == "interrupted"
            saved = latest(folder.checkpoints)
            assert saved == (folder.checkpoint(state.step) if state.step else None)
            assert state.step >= last.get(config.name, 0)
            again = list(resume(config.name, config.runs).events())
            assert again[0].step == state.step
        weights = [load_file(f.adapter / "adapter_model.safetensors") for f in (folder, folder_of(single))]
        assert_close(*weights)
        steps = [
            {event["step"]: event["loss"] for event in f.events() if event["event"] == "stepped"}
            for f in (folder, folder_of(single))
        ]
        assert steps[0] == pytest.approx(steps[1], rel=1e-4)


def test_closing_in_the_middle_of_accumulation_keeps_the_last_whole_step(settings):
    configs = [settings(name="whole"), settings(name="parts", micro_batch_size=1)]
    events = start_together(configs).events()
    steps = [event for _, event in (next(events) for _ in range(7)) if isinstance(event, Stepped)]
    assert [event.step for event in steps] == [1, 2, 3, 4]
    events.close()
    assert latest(folder_of(configs[0]).checkpoints) == folder_of(configs[0]).checkpoint(4)
    assert latest(folder_of(configs[1]).checkpoints) == folder_of(configs[1]).checkpoint(1)


def test_a_checkpoint_that_cannot_be_written_while_closing_is_told_and_the_others_are_written(settings):
    configs = [settings(name="bad", save_steps=8), settings(name="good", save_steps=8)]
    many = start_together(configs)
    events = many.events()
    for _ in range(5):
        next(events)
    folder_of(configs[0]).checkpoints.write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="cannot be written"):
        events.close()
    assert [folder_of(config).state().state for config in configs] == ["failed", "interrupted"]
    assert latest(folder_of(configs[1]).checkpoints)


# failing


def test_a_run_that_fails_leaves_the_others_to_go_on(settings):
    bad = settings(name="bad", learning_rate=1e30, lr_scheduler="constant", warmup_steps=0, save_steps=1)
    good = settings(name="good")
    (alone,) = under([good], "alone")
    list(start(alone).events())
    seen = []
    with pytest.raises(
        TrainingError, match=r"^run 'bad': the .* not finite at step 2, with .*1\.00e\+30"
    ) as caught:
        seen += start_together([bad, good]).events()  # extends as far as it comes
    assert "\n" not in str(caught.value)
    state = folder_of(bad).state()
    assert (state.state, state.step) == ("failed", 1)
    assert str(caught.value) == f"run 'bad': {state.note}"
    kept = latest(folder_of(bad).checkpoints)
    assert kept == folder_of(bad).checkpoint(1)
    assert all(tensor.isfinite().all() for tensor in read_adapter(kept).tensors.values())
    assert_same_runs(folder_of(good), folder_of(alone))


def test_a_failure_is_told_when_it_happens(settings):
    bad = settings(name="bad", learning_rate=1e30, lr_scheduler="constant", warmup_steps=0)
    events = start_together([bad, settings(name="good")]).events()
    kinds = [(name, type(event)) for name, event in (next(events) for _ in range(6))]
    assert kinds[4:] == [("bad", Failed), ("good", Stepped)]
    events.close()
    assert [run.state().state for run in list_runs(Path(bad.runs))] == ["failed", "interrupted"]
    with pytest.raises(TrainingError, match="not finite at step"):
        list(resume("bad", bad.runs).events())
    assert list(resume("good", bad.runs).events())[-1].step == 8


# checks


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "bfloat16"}, r"a\.toml has dtype 'float32', b\.toml has 'bfloat16'; .* share one base"),
        ({"model": "demo"}, r"a\.toml has model '.*', b\.toml has 'demo'"),
        ({"quantize": "nf4"}, r"a\.toml has quantize None, b\.toml has 'nf4'"),
        ({"activation_checkpointing": True}, "has activation_checkpointing None, b.toml has True"),
        ({"allow_pickle": True}, "has allow_pickle False, b.toml has True"),
        ({"compile": True}, r"^b\.toml: compile is for a run alone"),
        ({"name": "a"}, r"a\.toml and b\.toml: both runs are named 'a'"),
        ({"data": ""}, r"b\.toml: no data was given"),
        ({"name": "there"}, r"b\.toml: there is a run 'there'"),
    ],
)
def test_what_cannot_train_together_is_refused(settings, monkeypatch, changes, words):
    there = folder_of(settings(name="there"))
    there.path.mkdir(parents=True)
    (there.path / "config.toml").write_text(settings(name="there").to_toml())
    monkeypatch.setattr(starting, "open_base", lambda _: pytest.fail("it is told before the base is loaded"))
    configs = [settings(name="a"), settings(**{"name": "b"} | changes)]
    with pytest.raises(ConfigError, match=words) as caught:
        start_together(configs, sources=["a.toml", "b.toml"])
    assert "\n" not in str(caught.value)
    assert list_runs(there.path.parent) == [there]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"data": "none.jsonl"}, DataError, "none.jsonl: no such file"),
        ({"target_modules": "q_prj"}, TargetError, "Did you mean 'q_proj'"),
    ],
)
def test_nothing_is_written_when_a_check_of_the_last_fails(settings, changes, error, words):
    config = settings(name="a")
    with pytest.raises(error, match=words):
        start_together([config, settings(name="b", **changes)])
    assert not Path(config.runs).exists()


def test_no_runs_are_refused():
    with pytest.raises(ConfigError, match="no runs were given"):
        start_together([])


def test_names_are_made_from_the_data(settings):
    """As alone; a number keeps two runs on the same data apart."""
    configs = [settings(name=""), settings(name="", r=2)]
    many = start_together(configs)
    assert [run.folder.name for run in many.runs] == ["train", "train-2"]
    assert [run.folder.config().r for run in many.runs] == [4, 2]


def test_overwriting(settings):
    configs = [settings(name="a", max_steps=2), settings(name="b", max_steps=2)]
    by_run(start_together(configs))
    with pytest.raises(ConfigError, match="there is a run 'a'"):
        start_together(configs)
    again = start_together([config.model_copy(update={"r": 2}) for config in configs], overwrite=True)
    assert {name: events[-1].step for name, events in by_run(again).items()} == {"a": 2, "b": 2}
    assert all(
        isinstance(event, Saved | Started | Stepped | Finished)
        for e in by_run(start_together(configs, overwrite=True)).values()
        for event in e
    )


def test_a_run_that_is_held_elsewhere_stops_all(settings):
    configs = [settings(name="a"), settings(name="b")]
    many = start_together(configs)
    with many.runs[1].folder.hold(), pytest.raises(ConfigError, match="run 'b' is running now"):
        next(many.events())
    assert by_run(many)["a"][-1].step == 8
