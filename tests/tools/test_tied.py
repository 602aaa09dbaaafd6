"""Adapters on embeddings whose output head follows them: what tools make of them is tied too, and loads."""

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loralab.adapters import PeftModel, get_peft_model
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.tools.combine import combine
from loralab.tools.resize import resize

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


@pytest.fixture(scope="module")
def net() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 40}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True)).eval()


def adapter_on(net: LlamaForCausalLM, r: int, **settings: Any) -> Adapter:
    targets = {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True} | settings
    torch.manual_seed(r)
    config = LoraConfig(r=r, init_lora_weights=False, task_type="CAUSAL_LM", **targets)
    model = get_peft_model(copy.deepcopy(net), config)
    adapter = model.base_model.adapter("default")
    return Adapter(adapter.config, {key: t.detach().clone() for key, t in adapter.tensors.items()})


def loaded(net: LlamaForCausalLM, adapter: Adapter) -> PeftModel:
    model = get_peft_model(copy.deepcopy(net), LoraConfig(r=1, target_modules=["q_proj"]))
    model.base_model.attach("made", adapter.config, adapter)
    model.set_adapter("made")
    return model


def scores(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(12)[None]).logits


@pytest.mark.parametrize(
    "how", [{"r": 8}, {"r": 3}, {"energy": 0.8}, {"error": 0.5}, {"max_bytes": 1500}], ids=str
)
def test_a_resized_head_follows_its_embedding(net, how):
    adapter = adapter_on(net, 6)
    resized = resize(adapter, **how)
    modules = resized.adapter.modules()
    assert torch.equal(modules[HEAD].a_RI, modules[EMBEDDING].b_OR.t())
    assert torch.equal(modules[HEAD].b_OR, modules[EMBEDDING].a_RI.t())
    told = {layer.module: layer for layer in resized.layers}
    assert (told[HEAD].rank, told[HEAD].error) == (told[EMBEDDING].rank, told[EMBEDDING].error)
    if "max_bytes" in how:
        assert resized.bytes <= how["max_bytes"]
    found = scores(loaded(net, resized.adapter))
    if how == {"r": 8}:
        torch.testing.assert_close(found, scores(loaded(net, adapter)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", ["exact", "concatenate"])
def test_a_combined_head_follows_its_embedding(net, method):
    adapters = {"one": adapter_on(net, 2), "two": adapter_on(net, 3)}
    made = combine(adapters, [1.0, 0.5], method)
    assert made.adapter.config.ensure_weight_tying
    assert {layer.module for layer in made.layers} == set(adapters["one"].modules())
    sums = {
        path: factors.product() + 0.5 * adapters["two"].modules()[path].product()
        for path, factors in adapters["one"].modules().items()
    }
    for path, factors in made.adapter.modules().items():
        torch.testing.assert_close(factors.product(), sums[path], atol=1e-4, rtol=1e-4)
    scores(loaded(net, made.adapter))


@pytest.mark.parametrize("order", [("tied", "linear"), ("linear", "tied")])
def test_an_adapter_without_embeddings_leaves_the_tie_of_the_other(net, order):
    linear = adapter_on(net, 2, target_modules=["q_proj"], ensure_weight_tying=False)
    both = {"tied": adapter_on(net, 3), "linear": linear}
    made = combine({name: both[name] for name in order}, [1.0, 1.0])
    assert made.adapter.config.ensure_weight_tying
    scores(loaded(net, made.adapter))


def test_a_head_that_is_free_in_one_of_them_is_free_in_the_sum(net):
    free = adapter_on(net, 2, target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=False)
    made = combine({"tied": adapter_on(net, 3), "free": free}, [1.0, 1.0])
    assert not made.adapter.config.ensure_weight_tying
    scores(loaded(net, made.adapter))
