"""The report says what the files say, and what was measured is true."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loralab.adapters import get_peft_model, write_adapter
from loralab.core.config import LoraConfig
from loralab.core.describe import describe
from loralab.errors import CheckpointError
from loralab.models import BaseModel, load_base
from loralab.training.config import RunConfig
from loralab.training.events import Evaluated, Finished, Sampled, Started, Stepped
from loralab.training.folder import RunFolder, RunState
from loralab.training.history import History, read_history
from loralab.training.loop import evaluate
from loralab.training.prepare import causal_lm
from loralab.training.report import measuring
from loralab.training.report.advice import advise, kept_rank, relative_norms
from loralab.training.report.compare import common_losses, differing_settings
from loralab.training.report.measuring import Effect, Measuring, read_effect, read_general
from loralab.training.report.report import write_report
from loralab.training.tasks.causal_lm import CausalLM
from loralab.training.trainee import AdapterTrainee


def history_of(train: list[float], held_out: dict[int, float], base: float | None = 3.0) -> History:
    """The course of a run with these losses."""
    history = History(started=Started(0, len(train), 9, 10, 100, "rows"))
    for step, loss in enumerate(train, 1):
        history.add(Stepped(step, loss, 1e-3, 0.5, 64, 0.5, step / 3))
    for step, loss in held_out.items():
        history.add(Evaluated(step, loss, 5000, best=True))
    best = min(held_out, key=lambda step: held_out[step]) if held_out else len(train)
    history.add(Finished(len(train), "x", best, base, held_out.get(best), 1.0, 1))
    return history


def said(history: History, effect: Effect | None = None, **settings: Any) -> str:
    return "\n".join(advise(RunConfig(**settings), history, effect, ()))


FALLING = [3.0 - 0.05 * n for n in range(40)]


def test_overfitting_is_named_with_its_step() -> None:
    text = said(history_of(FALLING, {10: 2.0, 20: 1.8, 30: 1.9, 40: 2.2}))
    assert "**It overfits from step 20 on**" in text
    assert "The adapter is that of step 20." in text
    assert "last step all the same" in said(
        history_of(FALLING, {10: 2.0, 20: 1.8, 30: 1.9, 40: 2.2}), keep_best=False
    )


def test_a_rise_of_both_losses_is_no_overfitting() -> None:
    assert "overfits" not in said(history_of(FALLING[::-1], {10: 2.0, 20: 1.8, 30: 1.9, 40: 2.2}))


def test_a_loss_that_still_falls_asks_for_more() -> None:
    assert "still falling at the end" in said(history_of(FALLING, {10: 2.0, 20: 1.8, 30: 1.6, 40: 1.4}))
    assert "still falling" not in said(history_of(FALLING, {10: 2.0, 20: 1.8, 30: 1.6, 40: 1.599}))


def test_what_is_no_better_than_the_base_is_said_to_be() -> None:
    assert "**It is no better than the base**" in said(history_of(FALLING, {20: 3.5, 40: 3.2}))
    assert "perplexity falls from 20.09 to" in said(history_of(FALLING, {20: 2.5, 40: 2.2}))


def test_without_validation_data_it_says_so() -> None:
    assert "no validation data" in said(history_of(FALLING, {}, base=None))


@pytest.mark.parametrize(
    ("loss", "words"),
    [(2.01, "is kept"), (2.2, "a little is forgotten"), (3.0, "**Much of the general text is forgotten**")],
)
def test_forgetting_has_three_sizes(loss: float, words: str) -> None:
    effect = Effect("", 900, 0, 2.0, [], loss, 0.5)
    assert words in said(history_of(FALLING, {40: 2.0}), effect)


def test_no_effect_comes_first() -> None:
    text = said(history_of(FALLING, {40: 2.9}), Effect("", 900, 0, 2.0, [1], 2.0, 0.0))
    assert text.startswith("**It changes hardly anything**")


def test_kept_rank() -> None:
    assert kept_rank((3.0, 0.1, 0.1)) == 1
    assert kept_rank((1.0, 1.0, 1.0)) == 3
    assert kept_rank((1.0, 0.0)) == 1
    assert kept_rank(()) == 0


# Measuring


@pytest.fixture(scope="module")
def base(tiny_dir: Path) -> BaseModel:
    """The tiny base alone."""
    return load_base(str(tiny_dir), "float32")


@pytest.fixture
def adapted(tiny_dir: Path) -> tuple[AdapterTrainee, CausalLM]:
    """A fresh adapter on a base of its own, and the task."""
    own = load_base(str(tiny_dir), "float32")
    task = causal_lm(own)
    torch.manual_seed(0)
    return AdapterTrainee(get_peft_model(own.model, LoraConfig(r=4, target_modules="all-linear"))), task


def train(trainee: AdapterTrainee) -> None:
    """Give every B some numbers."""
    for name, parameter in trainee.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)


def test_the_base_and_the_adapter_are_measured(
    base: BaseModel, adapted: tuple[AdapterTrainee, CausalLM], tmp_path: Path
) -> None:
    (trainee, task), general = adapted, read_general(None, base)
    measure = Measuring(tmp_path, trainee, task, general, 4)
    trainee.model.train()
    state = torch.get_rng_state()
    measure.before()
    measure.after()
    assert trainee.model.training
    assert torch.equal(torch.get_rng_state(), state)
    fresh = read_effect(tmp_path)
    assert fresh is not None
    assert fresh.loss == fresh.base_loss == evaluate(base.model, causal_lm(base), general.examples, 4)[0]
    assert (fresh.changed, fresh.general, fresh.left) == (0.0, "", 0)
    assert fresh.tokens == sum(example.trained for example in general.examples) > 500

    train(trainee)
    measure.after()
    trained = read_effect(tmp_path)
    assert trained is not None
    assert trained.base_loss == fresh.base_loss
    assert trained.loss == evaluate(trainee.model, task, general.examples, 4)[0] != fresh.loss
    places = changed = 0
    trainee.model.eval()
    for example in general.examples:
        ids = torch.tensor([example.ids])
        now, before = (m(input_ids=ids).logits.argmax(-1) for m in (trainee.model, base.model))
        places, changed = places + ids.numel(), changed + int((now != before).sum())
    assert trained.changed == changed / places > 0


def test_relative_norms_are_those_of_the_dense_matrices(
    base: BaseModel, adapted: tuple[AdapterTrainee, CausalLM], tmp_path: Path
) -> None:
    trainee, task = adapted
    train(trainee)
    measure = Measuring(tmp_path, trainee, task, read_general(None, base), 4)
    measure.before()
    measure.after()
    found = read_effect(tmp_path)
    assert found is not None
    moved = relative_norms(describe(trainee.adapter), found.weight_norms)
    assert len(moved) == 14
    assert list(moved.values()) == sorted(moved.values(), reverse=True)
    path = "model.layers.1.mlp.down_proj"
    delta = trainee.adapter.modules()[path].product().detach()
    weight = base.model.get_submodule(path).weight.detach()
    assert moved[path] == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-5)


def test_long_general_text_is_counted(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_MOST", 300)
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog ran. " * 100)
    general = read_general(str(path), base)
    assert 0 < sum(len(example.ids) for example in general.examples) <= 300
    monkeypatch.setattr(measuring, "_MOST", 10**6)
    assert read_general(str(path), base).tokens == general.tokens + general.left
    monkeypatch.setattr(measuring, "_MOST", 1)
    assert len(read_general(str(path), base).examples) == 1


def test_findings_that_are_damaged_or_missing(
    tmp_path: Path, base: BaseModel, adapted: tuple[AdapterTrainee, CausalLM]
) -> None:
    assert read_effect(tmp_path) is None
    with pytest.raises(CheckpointError, match="the base was not measured"):
        Measuring(tmp_path, *adapted, read_general(None, base), 4).after()
    (tmp_path / "effect.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        read_effect(tmp_path)


# The page


@pytest.fixture
def folder(tmp_path: Path, adapted: tuple[AdapterTrainee, CausalLM]) -> RunFolder:
    """A finished run."""
    run = RunFolder(tmp_path / "runs" / "poet")
    run.path.mkdir(parents=True)
    (run.path / "config.toml").write_text(RunConfig(name="poet", model="tiny", data="x.jsonl").to_toml())
    (run.path / "plan.json").write_text(json.dumps({"steps": 4, "examples": 12, "rejected": 3, "tokens": 99}))
    run.write_lines(
        "rejected.jsonl",
        [
            {"source": f"x.jsonl:{n}", "reason": reason, "row": {}}
            for n, reason in enumerate(
                ["longer than cutoff_length 9: 20", "blank", "longer than cutoff_length 9: 31"]
            )
        ],
    )
    run.append(Started(0, 4, 12, 100, 1000, "rows"))
    run.append(Sampled(0, "Where | *now*?", "the base\nsays"))
    for step in range(1, 5):
        run.append(Stepped(step, 3 - step / 4, 1e-3, 1.5, 64, 0.5, step / 3))
        run.append(Evaluated(step, 3 - step / 8, 500, best=True))
        run.append(Sampled(step, "Where | *now*?", f"answer {step}"))
    run.append(Finished(4, str(run.adapter), 4, 3.0, 2.5, 2.0, 10**9))
    run.write_state(RunState(state="finished", step=4, steps=4))
    train(adapted[0])
    write_adapter(adapted[0].adapter, run.adapter)
    return run


def test_a_page_has_what_the_files_have(folder: RunFolder) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib, which is in the extra 'plot'")
    page = write_report(folder).read_text()
    for words in (
        "# poet\n",
        "| validation data | 500 | 3.0000 | 20.09 | 2.5000 | 12.18 |",
        "| 4 | ",
        "### Where \\| \\*now\\*?\n",
        "- base: the base says\n",
        "- step 4: answer 4\n",
        "| rows rejected | 3 |",
        "| longer than cutoff_length 9 | 2 |",
        "| blank | 1 |",
        "The 10 of 14 modules that moved most:",
        "| examples | 12 |",
    ):
        assert words in page, words
    for picture in ("loss", "rates", "adapter"):
        assert f"(plots/{picture}.svg)" in page
        assert (folder.path / "plots" / f"{picture}.svg").read_text().startswith("<?xml")
    assert "moved.svg" not in page, "nobody measured the weights"
    files = {path: path.read_bytes() for path in folder.path.rglob("*.svg")}
    assert write_report(folder).read_text() == page
    assert {path: path.read_bytes() for path in folder.path.rglob("*.svg")} == files


def test_without_matplotlib_the_page_says_so(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    page = write_report(folder).read_text()
    assert "pip install 'loralab[plot]'" in page
    assert ".svg" not in page
    assert not (folder.path / "plots").exists()


def test_a_run_without_a_step_has_a_page(folder: RunFolder) -> None:
    (folder.path / "events.jsonl").unlink()
    (folder.path / "run.json").unlink()
    page = write_report(folder).read_text()
    assert "The run is interrupted at step 0 of 0" in page
    assert "## Curves" not in page
    assert "## What it changes" not in page


# History and comparison


def test_steps_made_twice_count_once(folder: RunFolder) -> None:
    folder.append(Started(2, 4, 12, 100, 1000, "rows"))
    folder.append(Stepped(3, 9.0, 1e-3, 1.5, 64, 0.5, 1.0))
    folder.append_line("events.jsonl", {"event": "invented", "step": 3})
    history = read_history(folder.events())
    assert [(event.step, event.loss) for event in history.steps] == [(1, 2.75), (2, 2.5), (3, 9.0)]
    assert [event.step for event in history.evaluations] == [1, 2]
    assert [event.step for event in history.samples] == [0, 1, 2]
    assert history.started is not None
    assert history.started.step == 0


def test_settings_that_differ() -> None:
    one, two = RunConfig(name="a", model="m", r=8), RunConfig(name="b", model="m", lora_alpha=1)
    assert differing_settings({"a": one, "b": two}) == {
        "r": {"a": 8, "b": two.r},
        "lora_alpha": {"a": one.lora_alpha, "b": 1},
    }
    assert differing_settings({"a": one, "b": one}) == {}


def test_losses_at_common_steps() -> None:
    one, two = history_of([1.0] * 4, {2: 1.5, 4: 1.2}), history_of([1.0] * 6, {3: 2.0, 4: 1.9, 6: 1.8})
    assert common_losses({"a": one, "b": two}) == {4: {"a": 1.2, "b": 1.9}}
