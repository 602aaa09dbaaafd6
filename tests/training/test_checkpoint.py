"""Checkpoints hold everything to the bit, and what is not one is told apart."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from loralab.adapters import PeftModel, get_peft_model, read_adapter
from loralab.core.config import LoraConfig
from loralab.errors import CheckpointError
from loralab.training.checkpoint import Progress, complete, latest, load_checkpoint, save_checkpoint
from loralab.training.config import RunConfig
from loralab.training.optimizers import make_optimizer
from loralab.training.trainee import AdapterTrainee

FILES = ["adapter_config.json", "adapter_model.safetensors", "training.json", "training.safetensors"]
PROGRESS = Progress(step=3, best_step=2, best_loss=1.25, base_loss=2.5, seconds=0.1)


@pytest.fixture
def trained(tiny) -> tuple[PeftModel, torch.optim.Optimizer]:
    """An adapter and an optimizer that have made a few steps."""
    torch.manual_seed(0)
    model = get_peft_model(tiny.make_model(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1))
    optimizer = make_optimizer(model, RunConfig(weight_decay=0.1))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randint(4, 300, (2, 9))).logits.square().mean().backward()
        optimizer.step()
    return model, optimizer


def fresh(tiny: Any) -> tuple[PeftModel, torch.optim.Optimizer]:
    torch.manual_seed(99)
    model = get_peft_model(tiny.make_model(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1))
    return model, make_optimizer(model, RunConfig(weight_decay=0.1))


def states(model: PeftModel, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter.detach()
            for key, value in optimizer.state[parameter].items():
                yield f"{name}.{key}", value


def test_a_round_trip_restores_every_bit(tmp_path, tiny, trained):
    save_checkpoint(tmp_path / "000003", AdapterTrainee(trained[0]), trained[1], PROGRESS)
    drawn = torch.rand(5)
    model, optimizer = fresh(tiny)
    assert load_checkpoint(tmp_path / "000003", AdapterTrainee(model), optimizer) == PROGRESS
    assert torch.equal(torch.rand(5), drawn)
    expected, found = dict(states(*trained)), dict(states(model, optimizer))
    assert found.keys() == expected.keys()
    assert len([key for key in found if key.endswith("exp_avg_sq")]) == 28
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key
    save_checkpoint(tmp_path / "again", AdapterTrainee(model), optimizer, PROGRESS)
    for name in ("adapter_model.safetensors", "training.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "000003" / name).read_bytes()


def test_a_checkpoint_is_an_adapter_folder_without_pickles(tmp_path, trained):
    save_checkpoint(tmp_path / "000003", AdapterTrainee(trained[0]), trained[1], PROGRESS)
    assert sorted(path.name for path in (tmp_path / "000003").iterdir()) == FILES
    assert read_adapter(tmp_path / "000003").config.r == 4
    assert "rng.cpu" in load_file(tmp_path / "000003" / "training.safetensors")
    assert json.loads((tmp_path / "000003" / "training.json").read_text())["best_loss"] == 1.25


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_checkpoint_is_refused_in_one_line(tmp_path, tiny, trained, name, share):
    folder = tmp_path / "000003"
    save_checkpoint(folder, AdapterTrainee(trained[0]), trained[1], PROGRESS)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    model, optimizer = fresh(tiny)
    with pytest.raises(
        CheckpointError, match=r"000003: not a complete checkpoint .*Delete that folder"
    ) as caught:
        load_checkpoint(folder, AdapterTrainee(model), optimizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_a_file_missing_is_refused(tmp_path, tiny, trained, name):
    folder = tmp_path / "000003"
    save_checkpoint(folder, AdapterTrainee(trained[0]), trained[1], PROGRESS)
    (folder / name).unlink()
    model, optimizer = fresh(tiny)
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        load_checkpoint(folder, AdapterTrainee(model), optimizer)


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(tmp_path, tiny, trained):
    save_checkpoint(tmp_path / "000003", AdapterTrainee(trained[0]), trained[1], PROGRESS)
    wide = get_peft_model(tiny.make_model(width=32), LoraConfig(r=4, target_modules="all-linear"))
    before = {key: tensor.clone() for key, tensor in wide.base_model.adapter("default").tensors.items()}
    with pytest.raises(CheckpointError, match="28 of 28 tensors differ"):
        load_checkpoint(tmp_path / "000003", AdapterTrainee(wide), make_optimizer(wide, RunConfig()))
    after = wide.base_model.adapter("default").tensors
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_saving_over_a_checkpoint_replaces_it_whole(tmp_path, trained):
    save_checkpoint(tmp_path / "000003", AdapterTrainee(trained[0]), trained[1], PROGRESS)
    save_checkpoint(tmp_path / "000003", AdapterTrainee(trained[0]), trained[1], Progress(step=4))
    assert json.loads((tmp_path / "000003" / "training.json").read_text())["step"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["000003"]


def test_a_checkpoint_that_fails_leaves_the_old_one(tmp_path, trained, monkeypatch):
    model, optimizer = trained
    save_checkpoint(tmp_path / "000003", AdapterTrainee(model), optimizer, PROGRESS)
    parameter = next(iter(optimizer.state))
    optimizer.state[parameter]["exp_avg"] = torch.zeros(2).to_sparse()
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        save_checkpoint(tmp_path / "000003", AdapterTrainee(model), optimizer, Progress(step=4))
    assert json.loads((tmp_path / "000003" / "training.json").read_text())["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["000003"]


def test_half_written_checkpoints_never_count(tmp_path: Path, trained):
    assert latest(tmp_path) is None
    for name in ("000002", "000010", "1000000"):
        save_checkpoint(tmp_path / name, AdapterTrainee(trained[0]), trained[1], PROGRESS)
    for name in (".000011.x7.tmp", "000012", "000013-copy", "notes"):
        shutil.copytree(tmp_path / "000010", tmp_path / name)
    (tmp_path / "000012" / "training.json").unlink()
    assert [path.name for path in complete(tmp_path)] == ["000002", "000010", "1000000"]
    assert latest(tmp_path) == tmp_path / "1000000"
