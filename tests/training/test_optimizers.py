"""Every optimizer trains, and a run that was stopped goes on with it to the same bytes."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from loralab.errors import ConfigError
from loralab.training.events import Evaluated, Finished, Stepped
from loralab.training.folder import RunFolder
from loralab.training.optimizers import REGISTRY, make_optimizer, set_rate, settled
from loralab.training.starting import resume, start

WEIGHTS = "adapter_model.safetensors"
NAMES = [name.replace("_", "-") for name in REGISTRY.names]


def of(settings, optimizer: str, **changes):
    if optimizer == "schedule-free":
        changes["lr_scheduler"] = "constant"
    rate = 0.3 if optimizer == "sgd" else 1e-2
    return settings(optimizer=optimizer, learning_rate=rate, **changes)


def adapter(config) -> bytes:
    return (RunFolder(Path(config.runs) / config.name).adapter / WEIGHTS).read_bytes()


@pytest.mark.parametrize("optimizer", NAMES)
def test_an_optimizer_learns(settings, eval_file, optimizer):
    events = list(start(of(settings, optimizer, eval_data=str(eval_file), max_steps=24)).events())
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.loss < 0.97 * finished.base_loss


@pytest.mark.parametrize("optimizer", NAMES)
@pytest.mark.parametrize("stop", [3, 6])
def test_a_stopped_run_goes_on_to_the_same_bytes(settings, eval_file, optimizer, stop):
    changes = {"eval_data": str(eval_file), "lora_dropout": 0.1, "lora_plus_ratio": 4.0, "weight_decay": 0.1}
    whole = of(settings, optimizer, name="whole", **changes)
    list(start(whole).events())
    parted = of(settings, optimizer, name="parted", **changes)
    events = start(parted).events()
    for event in events:
        if isinstance(event, Stepped) and event.step == stop:
            break
    events.close()
    list(resume("parted", parted.runs).events())
    assert adapter(parted) == adapter(whole)


def test_lora_plus_gives_b_its_own_rate(settings):
    run = start(settings(lora_plus_ratio=16.0, weight_decay=0.1))
    optimizer = make_optimizer(run.model, run.config)
    set_rate(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for layer in run.model.base_model.lora_layers.values():
        a_RI, b_OR = layer.factors("default")
        assert (rates[id(a_RI)], rates[id(b_OR)]) == (1e-3, pytest.approx(16e-3))


def test_a_schedule_free_run_is_judged_by_its_average(settings, eval_file):
    config = of(settings, "schedule-free", eval_data=str(eval_file), max_steps=12)
    run = start(config)
    events = list(run.events())
    last = [event for event in events if isinstance(event, Evaluated)][-1]
    # What it trains at is not what it saves, and what it saves is what was evaluated.
    at = {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}
    again = list(
        start(
            settings(
                name="again",
                from_adapter=config.name,
                r=4,
                max_steps=1,
                learning_rate=1e-12,
                eval_data=str(eval_file),
            )
        ).events()
    )
    found = next(event for event in again if isinstance(event, Evaluated))
    assert found.loss == pytest.approx(last.loss, rel=1e-5)
    saved = run.trainee.adapter.tensors
    assert any(not torch.equal(tensor, saved[key]) for key, tensor in saved.items()) or at


def test_settling_changes_nothing_for_good(settings):
    run = start(of(settings, "schedule-free"))
    course = run.course()
    list(islice(run.events(), 4))
    optimizer = course.optimizer
    before = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    with settled(optimizer):
        pass
    after = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_muon_refuses_what_is_no_matrix(settings):
    list(start(settings()).events())
    with pytest.raises(ConfigError, match="muon trains matrices only"):
        start(settings(optimizer="muon", use_dora=True), overwrite=True)
    assert adapter(settings()), "the run that was to be replaced is still there"


@pytest.mark.parametrize("optimizer", NAMES)
def test_a_probe_leaves_no_trace(settings, eval_file, optimizer):
    plain = of(settings, optimizer, name="plain", eval_data=str(eval_file), lora_dropout=0.1)
    list(start(plain).events())
    probed = of(settings, optimizer, name="probed", eval_data=str(eval_file), lora_dropout=0.1)
    run = start(probed)
    found = run.probe()
    assert found.step_seconds > 0
    assert found.evaluation_seconds > 0
    assert found.sampling_seconds == 0
    assert found.peak_memory > 1e6
    assert found.seconds >= 8 * found.step_seconds
    list(run.events())
    assert adapter(probed) == adapter(plain)
