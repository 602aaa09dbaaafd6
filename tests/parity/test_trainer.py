"""`transformers.Trainer` with an adapted model of ours, beside the same run with PEFT's."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import loralab
from loralab import LoraConfig, PeftModel, get_peft_model

TARGETS: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
FILES = {"adapter_config.json", "adapter_model.safetensors"}


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            **{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
            **{"num_attention_heads": 2, "initializer_range": 0.3, "pad_token_id": 0},
            **{"bos_token_id": 1, "eos_token_id": 2},
        )
    )


def ours(**settings: Any) -> PeftModel:
    model = base()
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(**TARGETS, **settings))


def theirs() -> Any:
    model = base()
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(**TARGETS))


def rows(count: int = 12) -> datasets.Dataset:
    ids = torch.randint(3, 32, (count, 7), generator=torch.Generator().manual_seed(0)).tolist()
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": ids, "source": ["a book"] * count})


def trainer(model: nn.Module, folder: Path, **arguments: Any) -> Trainer:
    settings = {
        **{"max_steps": 6, "save_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 2},
        **{"learning_rate": 0.02, "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 5},
        **{"dataloader_pin_memory": False},
    }
    args = TrainingArguments(output_dir=str(folder), **(settings | arguments))
    return Trainer(model=model, args=args, train_dataset=rows(), eval_dataset=rows(4))


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_training_changes_the_adapter_alone_and_saves_it_alone(tmp_path: Path) -> None:
    model = ours()
    before, frozen = trained(model), base().state_dict()
    run = trainer(model, tmp_path)
    run.train()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in trained(model).items())
    assert equal(dict(model.unload().state_dict()), dict(frozen))
    for step in (3, 6):
        names = {path.name for path in (tmp_path / f"checkpoint-{step}").iterdir()}
        assert names >= FILES | {"optimizer.pt", "scheduler.pt", "trainer_state.json"}
        assert "model.safetensors" not in names
    first, last = (load_file(tmp_path / f"checkpoint-{n}" / "adapter_model.safetensors") for n in (3, 6))
    assert first.keys() == last.keys()
    assert not equal(first, last)


def test_save_model_writes_what_both_libraries_load(tmp_path: Path) -> None:
    model = ours(init_lora_weights=False)
    trainer(model, tmp_path / "run").save_model(str(tmp_path / "saved"))
    assert {path.name for path in (tmp_path / "saved").iterdir()} >= FILES
    ids = torch.tensor([rows()["input_ids"][0]])
    wanted = model.eval()(input_ids=ids).logits
    assert torch.equal(PeftModel.from_pretrained(base(), tmp_path / "saved")(input_ids=ids).logits, wanted)
    other = peft.PeftModel.from_pretrained(base(), tmp_path / "saved")
    torch.testing.assert_close(other(input_ids=ids).logits, wanted)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_resumed_run_is_the_unbroken_run_to_the_bit(tmp_path: Path, dropout: float) -> None:
    whole = ours(lora_dropout=dropout)
    unbroken = trainer(whole, tmp_path / "whole")
    unbroken.train()
    again = ours(lora_dropout=dropout, init_lora_weights=False)
    resumed = trainer(again, tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    assert equal(trained(again), trained(whole))
    assert losses(resumed) == losses(unbroken)


def test_the_loss_curve_is_that_of_peft(tmp_path: Path) -> None:
    runs = [trainer(model, tmp_path / name) for name, model in (("ours", ours()), ("theirs", theirs()))]
    for run in runs:
        run.train()
    mine, wanted = map(losses, runs)
    assert len(mine) == 6
    assert mine == pytest.approx(wanted, rel=1e-5)
    assert mine[-1] < mine[0]
    for name, tensor in trained(runs[1].model).items():
        torch.testing.assert_close(trained(runs[0].model)[name], tensor, rtol=1e-3, atol=1e-5)
    assert {path.name for path in (tmp_path / "theirs" / "checkpoint-6").iterdir()} >= FILES


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path) -> None:
    model = ours()
    run = trainer(
        model,
        tmp_path,
        **{"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True},
        **{"metric_for_best_model": "eval_loss", "greater_is_better": True},
    )
    run.train()
    best = Path(run.state.best_model_checkpoint)
    assert best.name != "checkpoint-6"
    tensors = load_file(best / "adapter_model.safetensors")
    for name, tensor in trained(model).items():
        assert torch.equal(tensor, tensors[name.replace(".default.", ".")])


def test_columns_that_the_model_does_not_take_are_removed_and_no_others(tmp_path: Path) -> None:
    run = trainer(ours(), tmp_path)
    batch = next(iter(run.get_train_dataloader()))
    assert set(batch) >= {"input_ids", "labels"}
    assert "source" not in batch


def test_two_adapters_are_saved_and_resumed(tmp_path: Path) -> None:
    def two() -> PeftModel:
        model = ours()
        model.add_adapter("poet", LoraConfig(target_modules=["up_proj"]))
        model.set_adapter("poet")
        return model

    whole, again = two(), two()
    trainer(whole, tmp_path / "whole").train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert {path.name for path in (checkpoint / "poet").iterdir()} == FILES
    trainer(again, tmp_path / "again").train(resume_from_checkpoint=str(checkpoint))
    assert again.active_adapters == ["poet"]
    assert len(trained(again)) == 4
    assert equal(trained(again), trained(whole))


@pytest.fixture(scope="session")
def without_peft(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that has every installed package but peft."""
    packages = tmp_path_factory.mktemp("packages")
    for folder in [Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]:
        for path in folder.iterdir():
            if not path.name.startswith("peft") and not (packages / path.name).exists():
                (packages / path.name).symlink_to(path)
    here = str(Path(loralab.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, str(packages)]), "PYTHONNOUSERSITE": "1"}


def test_resuming_does_not_need_peft(tmp_path: Path, without_peft: dict[str, str]) -> None:
    script = Path(__file__).with_name("resume_without_peft.py")
    command = [sys.executable, "-S", "-W", "error", str(script), str(tmp_path)]
    done = subprocess.run(command, env=without_peft, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "equal to the bit"
