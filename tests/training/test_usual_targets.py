"""What an adapter sits on where no targets are named: linear layers, and a small vocabulary too."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import LlamaForCausalLM

from loralab.adapters import read_adapter
from loralab.cli.settings import Origin, gather
from loralab.errors import ConfigError
from loralab.models import load_base
from loralab.training.adapting import usual_targets
from loralab.training.config import RunConfig
from loralab.training.folder import RunFolder
from loralab.training.many import start_together
from loralab.training.starting import start

LINEAR, BOTH = "all-linear", "all-linear, embeddings"


def model_of(tiny: SimpleNamespace, *, vocabulary: int = 300, tied: bool = False) -> LlamaForCausalLM:
    config = tiny.make_model().config
    config.vocab_size, config.tie_word_embeddings = vocabulary, tied
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def tied_dir(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose output head has the embeddings' weight."""
    folder = tmp_path_factory.mktemp("tied")
    model_of(tiny, tied=True).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("vocabulary", "targets"), [(300, BOTH), (4096, BOTH), (4097, LINEAR)])
def test_embeddings_are_adapted_where_the_vocabulary_is_small(tiny, vocabulary, targets):
    assert usual_targets(RunConfig(), model_of(tiny, vocabulary=vocabulary)) == targets


@pytest.mark.parametrize(
    ("changes", "untied", "tied"),
    [
        ({"last_layers": 1}, LINEAR, LINEAR),
        ({"modules_to_save": "embed_tokens"}, LINEAR, LINEAR),
        ({"modules_to_save": "norm, lm_head"}, BOTH, LINEAR),
        ({"modules_to_save": "norm"}, BOTH, BOTH),
        ({"use_dora": True}, BOTH, LINEAR),
        ({"init": "pissa"}, BOTH, LINEAR),
        ({"init": "olora"}, BOTH, LINEAR),
        ({"init": "orthogonal"}, BOTH, BOTH),
        ({"use_rslora": True, "lora_dropout": 0.1}, BOTH, BOTH),
    ],
    ids=str,
)
def test_embeddings_are_left_alone_where_other_settings_leave_no_room(tiny, changes, untied, tied):
    config = RunConfig(**changes)
    assert usual_targets(config, model_of(tiny)) == untied
    assert usual_targets(config, model_of(tiny, tied=True)) == tied


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_dora": True},
        {"init": "pissa"},
        {"init": "olora"},
        {"init": "orthogonal"},
        {"last_layers": 1},
        {"modules_to_save": "lm_head"},
        {"modules_to_save": "embed_tokens"},
        {"optimizer": "muon"},
        {"neftune_alpha": 5.0},
        {"quantize": "int8"},
    ],
    ids=str,
)
def test_a_run_without_targets_ends_well_on_a_tied_base(settings, tied_dir, changes):
    run = start(settings(model=str(tied_dir), max_steps=2, save_steps=2, **changes))
    list(run.events())
    targets = run.config.target_modules
    assert run.folder.config().target_modules == targets
    assert run.folder.plan()["settings"]["target_modules"] == targets
    lora = read_adapter(run.folder.adapter).config
    assert ("embed_tokens" in lora.target_modules) is (targets == BOTH)
    assert lora.ensure_weight_tying is (targets == BOTH or "modules_to_save" in changes)


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"init": "pissa"}, {"init": "olora"}], ids=str)
def test_what_a_tied_head_cannot_have_is_refused_at_the_start(settings, tied_dir, tmp_path, changes):
    with pytest.raises(ConfigError, match=f"^{next(iter(changes))}.* weight is the output head's too"):
        start(settings(model=str(tied_dir), target_modules=BOTH, **changes))
    assert not (tmp_path / "runs").exists()


def test_runs_that_train_together_can_all_have_embeddings(settings, tied_dir):
    many = start_together([settings(name=name, model=str(tied_dir), r=r) for name, r in (("a", 2), ("b", 3))])
    list(many.events())
    for run in many.runs:
        assert run.config.target_modules == BOTH
        assert "model.embed_tokens" in read_adapter(run.folder.adapter).modules()


def test_what_trains_no_adapter_of_its_own_has_no_targets(settings):
    first = start(settings(name="first"))
    list(first.events())
    runs = first.config.runs
    further = start(settings(name="further", from_adapter=str(first.folder.adapter)))
    assert further.config.target_modules is None
    assert further.adapter.modules().keys() == first.adapter.modules().keys()
    (whole,) = gather([], RunConfig(name="whole", runs=runs, full=True), Origin(like="first"))
    assert (whole.target_modules, whole.r) == (None, RunConfig().r)
    list(start(whole).events())
    assert RunFolder(Path(runs) / "whole").config().target_modules is None


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_over_embeddings_b_begins_as_small_as_their_weights(settings, tied_dir, init):
    run = start(settings(model=str(tied_dir), init=init, r=16))
    weight = run.base.model.model.embed_tokens.original_weight
    factors = run.adapter.modules()["model.embed_tokens"]
    assert factors.b_OR.detach().std() == pytest.approx(float(weight.detach().std()), rel=0.2)
    assert not factors.a_RI.any()


def test_an_adapter_to_go_on_from_keeps_its_b(settings, tied_dir):
    first = start(settings(name="first", model=str(tied_dir)))
    list(first.events())
    folder = first.folder.adapter
    further = start(settings(name="further", model=str(tied_dir), from_adapter=str(folder)))
    kept, now = read_adapter(folder).modules(), further.adapter.modules()
    assert all(now[path].b_OR.equal(factors.b_OR) for path, factors in kept.items())


def test_the_benchmark_of_quality_names_what_is_chosen(assets, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    base = load_base(str(assets / "models" / "stories260K"))
    chosen = usual_targets(RunConfig(), base.model)
    assert {"target_modules": chosen} == importlib.import_module("quality").DEFAULT
