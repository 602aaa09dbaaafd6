"""Copied settings, targets in words, and runs that are made to fit."""

from pathlib import Path

import pytest

from loralab.adapters import read_adapter
from loralab.errors import AdapterError, ConfigError
from loralab.training.config import check
from loralab.training.likeness import settings_of
from loralab.training.settings.optimization import usual_learning_rate
from loralab.training.starting import ready, start


def test_a_run_that_fits_is_left_as_it_is(settings):
    run = ready(settings(), fitted=True)
    assert (run.config.micro, run.config.activation_checkpointing) == (4, False)


def test_less_memory_gives_smaller_micro_batches_then_recomputed_layers(settings):
    whole = ready(settings(batch_size=8), fitted=True)
    takes = whole.memory.total / 1e9
    runs = [ready(settings(batch_size=8, max_memory=takes * part), fitted=True) for part in (0.8, 0.6)]
    assert all(run.memory.fits for run in (*runs, whole))
    micros = [run.config.micro for run in (whole, *runs)]
    assert micros[0] == 8
    assert micros == sorted(micros, reverse=True)
    assert micros[-1] < 8
    assert 8 % micros[-1] == 0


def test_what_cannot_fit_is_refused_with_what_to_do(settings):
    with pytest.raises(ConfigError, match=r"even one example at a time takes .* lower cutoff_length or r"):
        ready(settings(max_memory=0.0001), fitted=True)


def test_the_settings_of_a_run_are_copied_but_for_its_name(settings, tmp_path):
    list(start(settings(lora_dropout=0.2, weight_decay=0.1)).events())
    copied = settings_of("run", str(tmp_path / "runs"))
    assert "name" not in copied
    assert "runs" not in copied
    assert (copied["lora_dropout"], copied["weight_decay"], copied["r"]) == (0.2, 0.1, 4)
    assert check(copied | {"r": 2}).r == 2


def test_of_an_adapter_from_elsewhere_its_shape_is_copied(settings, tmp_path):
    list(start(settings(target_modules="attention", use_rslora=True)).events())
    folder = tmp_path / "elsewhere"
    (tmp_path / "runs" / "run" / "adapter").rename(folder)
    copied = settings_of(str(folder))
    assert (copied["r"], copied["use_rslora"]) == (4, True)
    assert set(copied["target_modules"].split(", ")) == set(read_adapter(folder).config.target_modules)
    with pytest.raises(AdapterError, match="there is no adapter 'nothing'"):
        settings_of("nothing", str(tmp_path / "runs"))


@pytest.mark.parametrize(
    ("targets", "layers", "wanted"),
    [
        ("all-linear", None, 14),
        ("attention", None, 8),
        ("feed-forward", None, 6),
        ("all-linear", 1, 7),
        ("attention, embeddings", None, 9),
        ("q_proj, embeddings", 1, 2),
        ("attention, feed-forward", None, 14),
    ],
)
def test_targets_in_words(settings, targets, layers, wanted):
    run = start(settings(target_modules=targets, last_layers=layers))
    adapted = run.adapter.modules()
    assert len(adapted) == wanted + ("embeddings" in targets and len(adapted) - wanted)
    assert ("model.embed_tokens" in adapted) is ("embeddings" in targets)
    if layers:
        assert all(".1." in path for path in adapted if "layers" in path)
    list(run.events())
    assert read_adapter(Path(run.folder.adapter)).tensors


def test_there_are_only_so_many_layers(settings):
    with pytest.raises(ConfigError, match="last_layers is 3, and the model has 2 layers"):
        start(settings(last_layers=3))


def test_the_usual_learning_rate_falls_with_the_width():
    rates = [usual_learning_rate(width) for width in (64, 768, 2048, 8192)]
    assert rates == sorted(rates, reverse=True)
    assert 1e-4 < rates[-1] < rates[0] <= 1.1e-2
    assert all(usual_learning_rate(w, full=True) < usual_learning_rate(w) for w in (64, 2048))
