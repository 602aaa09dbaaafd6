"""Base models in 4 and 8 bits, through transformers and bitsandbytes, and adapters trained over them."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralab import LoraConfig, PeftModel, get_peft_model
from loralab.adapters.kbit import prepare_model_for_kbit_training
from loralab.errors import ConfigError, ModelError
from loralab.models import BaseModel, load_base
from loralab.models import quantize as quantize_module

TEXT = "Once upon a time, there was a little girl named Lily. She loved to play outside."


def load(folder: Path, kind: str, dtype: str = "float32") -> BaseModel:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'loralab[quant]'")
    return load_base(str(folder), dtype, quantize=kind)


def loss_of(model: Any, base: BaseModel) -> Tensor:
    batch = base.tokenizer(TEXT, return_tensors="pt").to(base.device)
    loss: Tensor = model(**batch, labels=batch["input_ids"]).loss
    return loss


def base_bits(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if "lora_" not in key}


@pytest.fixture(params=["nf4", "int8"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "stored"])
def test_a_quantized_base_still_knows_its_language(stories_model_dir: Path, kind: str, dtype: str) -> None:
    base = load(stories_model_dir, kind, dtype)
    names = {type(m).__name__ for n, m in base.model.named_modules() if n.endswith("_proj")}
    assert names == {"Linear4bit" if kind == "nf4" else "Linear8bitLt"}
    assert base.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    assert base.device == base.model.device
    assert not base.model.training
    with torch.no_grad():
        stored = loss_of(load_base(str(stories_model_dir), "float32").model, base)
        # Vocabulary 512: a model that knows nothing is at 6.2.
        assert loss_of(base.model, base) == pytest.approx(stored.item(), abs=0.25)


def test_training_over_a_quantized_base(stories_model_dir: Path, kind: str, tmp_path: Path) -> None:
    base = load(stories_model_dir, kind)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(prepare_model_for_kbit_training(base.model), config).train()
    before = base_bits(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = loss_of(model, base)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[3] < losses[2] < losses[1] < losses[0]
    after = base_bits(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())

    model.save_pretrained(tmp_path)
    read = PeftModel.from_pretrained(load(stories_model_dir, kind).model, tmp_path)
    with torch.no_grad():
        trained = loss_of(model.eval(), base)
        assert torch.equal(loss_of(read, base), trained)
        merged = loss_of(model.merge_and_unload(), base)
    assert trained < losses[0] - 0.2
    assert merged < losses[0] - 0.2


def test_what_is_prepared(stories_model_dir: Path, kind: str) -> None:
    base = load(stories_model_dir, kind, "bfloat16")
    codes = {n: p.detach().clone() for n, p in base.model.named_parameters() if not p.is_floating_point()}
    model = prepare_model_for_kbit_training(base.model)
    assert model is base.model
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {torch.float32}
    assert codes
    assert all(torch.equal(p, codes[n]) for n, p in model.named_parameters() if n in codes)
    assert model.is_gradient_checkpointing
    ids = torch.tensor([[1, 2]], device=base.device)
    assert model.get_input_embeddings()(ids).requires_grad


def test_what_is_prepared_without_checkpointing(stories_model_dir: Path, kind: str) -> None:
    model = prepare_model_for_kbit_training(load(stories_model_dir, kind).model, False)
    ids = torch.tensor([[1, 2]], device=model.device)
    assert not model.is_gradient_checkpointing
    assert not model.get_input_embeddings()(ids).requires_grad


def test_the_kind_of_checkpointing_is_passed_on(stories_model_dir: Path, kind: str) -> None:
    for options, reentrant in ((None, True), ({"use_reentrant": False}, False)):
        model = load(stories_model_dir, kind).model
        prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs=options)
        checkpoint = model.model.layers[0]._gradient_checkpointing_func
        assert checkpoint.keywords == {"use_reentrant": reentrant}


def test_a_model_that_is_not_quantized_is_frozen_and_widened(stories_model_dir: Path) -> None:
    model = prepare_model_for_kbit_training(load_base(str(stories_model_dir), "bfloat16").model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.is_gradient_checkpointing


def test_no_such_quantization(tiny_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"quantize is 'nf5'; expected nf4 or int8\. Did you mean 'nf4'\?"):
        load_base(str(tiny_dir), quantize="nf5")


def test_without_the_library(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        quantize_module, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(ConfigError, match=r"needs bitsandbytes: pip install 'loralab\[quant\]'\.$"):
        load_base(str(tiny_dir), quantize="nf4")


def test_what_is_quantized_already(stories_model_dir: Path, tmp_path: Path, kind: str) -> None:
    base = load(stories_model_dir, kind)
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    again = load_base(str(tmp_path), "float32")
    with torch.no_grad():
        assert torch.equal(loss_of(again.model.train(), base), loss_of(base.model.train(), base))
    with pytest.raises(ModelError, match="its weights are stored quantized already; leave `quantize` out"):
        load_base(str(tmp_path), quantize=kind)
