"""Whole models: tied and shared weights, copies, other precisions, checkpointed layers."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from loralab.adapters import PeftModel, get_peft_model
from loralab.core.config import LoraConfig
from loralab.core.model import LoraModel

IDS = torch.arange(1, 13).view(2, 6)


def llama(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        attention_dropout=0.0,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def config(*targets: str, **settings: Any) -> LoraConfig:
    settings = {"r": 4, "init_lora_weights": False, **settings}
    return LoraConfig(target_modules=list(targets), **settings)


class Shared(nn.Module):
    """One linear layer at two places, in one parent and in another."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = self.one
        self.inner = nn.Sequential(nn.Tanh(), self.one)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.two(self.one(x)))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head", "q_proj"])
def test_merging_into_tied_weights_touches_the_targeted_module_only(target: str) -> None:
    model = get_peft_model(llama(), config(target)).eval()
    base = model.get_base_model()
    embedding, head = llama().model.embed_tokens.weight, llama().lm_head.weight
    before = model(IDS).logits
    model.merge_adapter()
    torch.testing.assert_close(model(IDS).logits, before)
    assert torch.equal(base.get_input_embeddings().weight, embedding) == (target != "embed_tokens")
    assert torch.equal(base.get_output_embeddings().weight, head) == (target != "lm_head")
    model.unmerge_adapter()
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head", "q_proj"])
def test_a_merged_tied_model_is_the_same_after_saving_and_loading(target: str, tmp_path: Path) -> None:
    model = get_peft_model(llama(), config(target)).eval()
    before = model(IDS).logits
    merged = model.merge_and_unload()
    tied = target == "q_proj"
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    assert merged.config.tie_word_embeddings == tied
    merged.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(IDS).logits, before)


@pytest.mark.parametrize("merged", [False, True])
def test_a_deep_copy_is_independent(merged: bool) -> None:
    model = get_peft_model(llama(), config("q_proj", "lm_head", "embed_tokens")).eval()
    model.add_adapter("other", config("v_proj"))
    if merged:
        model.merge_adapter()
    twin = copy.deepcopy(model)
    before = model(IDS).logits
    assert torch.equal(twin(IDS).logits, before)
    twin.set_adapter("other")
    twin.unmerge_adapter()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(IDS).logits, before)
    assert model.active_adapters == ["default"]
    assert model.merged_adapters == (["default"] if merged else [])
    twin.delete_adapter("default")
    assert list(model.peft_config) == ["default", "other"]


def test_a_model_survives_torch_save() -> None:
    model = get_peft_model(llama(), config("q_proj")).eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_shared_layer_is_adapted_wherever_it_stands() -> None:
    torch.manual_seed(0)
    net, x = Shared(), torch.randn(3, 4)
    base = net(x)
    original = net.one
    model = LoraModel(net, config("one")).eval()
    assert net.one is net.two is net.inner[1] is not original
    before = model(x)
    delta = net.one.delta("default")

    def layer(y: Tensor) -> Tensor:
        return original(y) + y @ delta.t()

    torch.testing.assert_close(before, layer(torch.tanh(layer(layer(x)))))
    model.merge_adapter()
    torch.testing.assert_close(model(x), before)
    model.unload()
    assert net.one is net.two is net.inner[1] is original
    assert torch.equal(net(x), base)


def test_merging_does_not_change_what_the_model_is_made_of() -> None:
    model = get_peft_model(llama(), config("q_proj"))
    names, numbers = list(model.state_dict()), model.get_nb_trainable_parameters()
    model.merge_adapter()
    assert list(model.state_dict()) == names
    assert model.get_nb_trainable_parameters() == numbers


def test_a_merged_model_can_be_moved_to_another_precision() -> None:
    model = get_peft_model(llama(), config("q_proj")).eval()
    adapted = model(IDS).logits
    model.merge_adapter()
    model.double()
    torch.testing.assert_close(model(IDS).logits, adapted.double(), atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(model(IDS).logits, llama().double()(IDS).logits, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(model(IDS).logits, adapted.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_checkpointed_layers_with_dropout_give_the_same_gradients() -> None:
    def gradients(checkpointed: bool) -> dict[str, Tensor]:
        model = get_peft_model(llama(), config("q_proj", "up_proj", lora_dropout=0.3)).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(7)
        model(IDS, labels=IDS).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert len(plain) == 8
    assert equal(plain, checkpointed)


def test_a_model_passes_for_its_base() -> None:
    model = get_peft_model(llama(), config("q_proj"))
    assert isinstance(model, PeftModel)
    assert isinstance(model, LlamaForCausalLM)
    assert model.config is model.get_base_model().config
    assert model.generate(IDS, max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (2, 8)
