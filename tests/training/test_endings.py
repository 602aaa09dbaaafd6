"""When a run ends before its last step, what it goes on from, and training without an adapter."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loralab.adapters import PeftModel, read_adapter
from loralab.errors import ConfigError
from loralab.models import load_base
from loralab.training.config import check
from loralab.training.events import Evaluated, Finished, Stepped
from loralab.training.folder import RunFolder
from loralab.training.loop import evaluate
from loralab.training.prepare import causal_lm
from loralab.training.starting import resume, start

WEIGHTS = "adapter_model.safetensors"


def train(config):
    return list(start(config).events())


def folder_of(config) -> RunFolder:
    return RunFolder(Path(config.runs) / config.name)


def test_a_run_ends_at_a_loss_that_is_smoothed(settings):
    losses = [e for e in train(settings(name="all", max_steps=40)) if isinstance(e, Stepped)]
    goal = losses[24].smoothed
    first = next(e.step for e in losses if e.step >= 10 and e.smoothed <= goal)
    finished = train(settings(max_steps=40, stop_at_loss=goal))[-1]
    assert isinstance(finished, Finished)
    assert (finished.step, finished.ended) == (first, "stop_at_loss")


@pytest.fixture
def unlearning(settings, eval_file, tiny, tmp_path):
    """Settings of a run on one row, which unlearns the rest, with what the test changes."""
    data = tiny.write_jsonl(tmp_path / "one.jsonl", [{"prompt": "the", "completion": "dog dog"}])
    files = {"data": str(data), "eval_data": str(eval_file)}
    return partial(settings, **files, learning_rate=0.05, eval_steps=1, batch_size=1)


def test_a_run_ends_when_it_gets_no_better(unlearning):
    config = unlearning(max_steps=60, early_stopping=3)
    events = train(config)
    losses = [e.loss for e in events if isinstance(e, Evaluated)]
    assert losses.index(min(losses)) == len(losses) - 4
    assert (events[-1].ended, events[-1].chosen_step) == ("early_stopping", len(losses) - 3)


def test_the_last_step_is_kept_where_that_is_asked_for(unlearning):
    config = unlearning(max_steps=12, keep_best=False)
    assert train(config)[-1].chosen_step == 12


def test_a_run_goes_on_from_an_adapter(settings, eval_file):
    first = settings(name="first", eval_data=str(eval_file), target_modules="attention", lora_alpha=8)
    reached = train(first)[-1].loss
    config = settings(name="second", eval_data=str(eval_file), from_adapter="first", learning_rate=1e-12, r=4)
    finished = train(config)[-1]
    assert finished.loss == pytest.approx(reached, rel=1e-5)
    adapter = read_adapter(folder_of(config).adapter)
    assert adapter.config.lora_alpha == 8
    assert adapter.tensors.keys() == read_adapter(folder_of(first).adapter).tensors.keys()
    assert folder_of(config).config().lora_alpha == 8


def test_an_adapter_keeps_its_rank(settings):
    train(settings(name="first"))
    with pytest.raises(ConfigError, match="r is 8, and the adapter first has 4"):
        start(settings(name="second", from_adapter="first", r=8))


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal", "gaussian"])
def test_an_adapter_of_any_start_is_one_of_the_plain_base(settings, eval_file, init):
    config = settings(eval_data=str(eval_file), init=init)
    run = start(config)
    finished = list(run.events())[-1]
    base = load_base(config.model, "float32")
    causal_lm(base)
    base_loss, _ = evaluate(base.model, run.task, run.eval_data.examples, 4)
    assert finished.base_loss == pytest.approx(base_loss, rel=1e-5)
    model = PeftModel.from_pretrained(base.model, folder_of(config).adapter)
    loss, _ = evaluate(model, run.task, run.eval_data.examples, 4)
    assert loss == pytest.approx(finished.loss, rel=1e-4)
    with model.disable_adapter():
        assert evaluate(model, run.task, run.eval_data.examples, 4)[0] == pytest.approx(base_loss, rel=1e-5)


def test_a_start_from_the_base_s_weights_is_resumed_exactly(settings):
    changes = {"init": "pissa", "lora_dropout": 0.1}
    whole = settings(name="whole", **changes)
    train(whole)
    config = settings(**changes)
    events = start(config).events()
    for event in events:
        if isinstance(event, Stepped) and event.step == 3:
            break
    events.close()
    list(resume("run", config.runs).events())
    assert (folder_of(config).adapter / WEIGHTS).read_bytes() == (
        folder_of(whole).adapter / WEIGHTS
    ).read_bytes()


def test_all_weights_are_trained(settings, eval_file):
    values = settings(eval_data=str(eval_file)).model_dump() | {"full": True, "r": 16, "learning_rate": 1e-3}
    config = check(values)
    run = start(config)
    finished = list(run.events())[-1]
    assert finished.loss < finished.base_loss
    assert run.parameters[0] == run.parameters[1] == 14288
    base = load_base(str(folder_of(config).model), "float32")
    loss, _ = evaluate(base.model, causal_lm(base), run.eval_data.examples, 4)
    assert loss == pytest.approx(finished.loss, rel=1e-4)
    before = load_base(config.model, "float32").model
    pairs = zip(base.model.parameters(), before.parameters(), strict=True)
    assert not any(torch.equal(new, old) for new, old in pairs)


def test_full_training_is_resumed_exactly(settings):
    values = settings(name="whole").model_dump() | {"full": True, "r": 16, "learning_rate": 1e-3}
    train(check(values))
    config = check(values | {"name": "parted"})
    events = start(config).events()
    for event in events:
        if isinstance(event, Stepped) and event.step == 3:
            break
    events.close()
    list(resume("parted", config.runs).events())
    one, other = (
        load_file(Path(config.runs) / name / "model" / "model.safetensors") for name in ("whole", "parted")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_setting_of_an_adapter_has_no_effect_on_full():
    with pytest.raises(ConfigError, match="r has no effect with full"):
        check({"full": True, "r": 8})
    assert check({"full": True, "effort": "thorough"}).r == 16
