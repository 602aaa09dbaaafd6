"""Several adapters on one base: each computes what it computes alone, and the base what it computes bare."""

import pytest
import torch

from loralab.adapters import PeftModel, get_peft_model
from loralab.core.config import LoraConfig
from loralab.errors import AdapterError
from loralab.models import load_base
from loralab.training.evaluation.lineup import open_lineup
from loralab.training.evaluation.settings import EvalSettings

IDS = torch.arange(4, 24)[None]


@pytest.fixture(scope="module")
def adapters(tiny_dir, tmp_path_factory):
    """Folders of adapters of several kinds, with effect; the last comes with embeddings of its own."""
    folders = []
    kinds = [
        {"target_modules": ["q_proj"], "r": 2},
        {"target_modules": "all-linear", "r": 4, "use_dora": True},
        {"target_modules": ["v_proj"], "r": 3, "modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "k_proj"], "r": 2},
    ]
    for number, kind in enumerate(kinds):
        base = load_base(str(tiny_dir), "float32").model
        last = number == len(kinds) - 1
        if last:
            torch.manual_seed(9)
            torch.nn.init.normal_(base.get_input_embeddings().weight, std=0.2)
        torch.manual_seed(number)
        model = get_peft_model(base, LoraConfig(init_lora_weights=False, **kind))
        folder = tmp_path_factory.mktemp("adapters") / str(number)
        model.save_pretrained(folder, save_embedding_layers=last)
        folders.append(folder)
    return folders


@pytest.fixture
def lineup(tiny_dir, adapters):
    settings = EvalSettings(model=str(tiny_dir), data="d", dtype="float32")
    return open_lineup(settings, [str(folder) for folder in adapters], "runs")


@torch.no_grad()
def scores(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


def test_each_speaks_as_if_it_were_alone(lineup, adapters, tiny_dir):
    bare = scores(load_base(str(tiny_dir), "float32").model)
    single = [
        scores(PeftModel.from_pretrained(load_base(str(tiny_dir), "float32").model, folder))
        for folder in adapters
    ]
    base, *others = lineup.subjects
    # Forwards, backwards, and the base in between: nobody leaves anything behind.
    for index in (0, 1, 2, 3, 3, 1, 2, 0):
        with lineup.alone(base) as model:
            torch.testing.assert_close(scores(model), bare)
        with lineup.alone(others[index]) as model:
            found = scores(model)
        torch.testing.assert_close(found, single[index])
        assert (found - bare).abs().max() > 1e-3


def test_subjects_are_told_apart_by_content(lineup, adapters):
    base, *others = lineup.subjects
    assert (base.name, base.digest) == ("base", "")
    assert [subject.name for subject in others] == [str(folder) for folder in adapters]
    assert len({subject.digest for subject in others}) == len(adapters)


def test_the_digest_of_a_base_follows_its_files(tiny, tmp_path):
    def digest() -> str:
        return open_lineup(EvalSettings(model=str(tmp_path), dtype="float32"), (), "runs").base_digest

    tiny.write_base(tmp_path)
    first = digest()
    assert digest() == first
    tiny.write_base(tmp_path, seed=1)
    assert digest() != first


def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_measured(tiny, adapters, tmp_path):
    tiny.write_base(tmp_path, width=32)
    settings = EvalSettings(model=str(tmp_path), dtype="float32")
    with pytest.raises(AdapterError):
        open_lineup(settings, [str(adapters[0])], "runs")
