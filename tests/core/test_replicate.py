"""`layer_replication`: the base's layers stacked anew, their weights shared."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from loralab.core.model import LoraModel
from loralab.errors import ConfigError, LoralabError, TargetError

from .models import IDS, close, config, llama, logits, small, twin

RANGES = [[0, 2], [1, 2]]
Q = "model.layers.{}.self_attn.q_proj"


def adapted(base: nn.Module | None = None, **settings: Any) -> LoraModel:
    model = LoraModel(base or llama(), config("q_proj", layer_replication=RANGES, **settings)).eval()
    small(model)
    return model


def deeper(model: LoraModel) -> nn.Module:
    """A base of three layers of its own, with the merged weights that the copies should have."""
    made = llama(num_hidden_layers=3).requires_grad_(False)
    weights = {key: value.clone() for key, value in llama().state_dict().items()}
    for key in list(weights):
        if ".layers.1." in key:
            weights[key.replace(".layers.1.", ".layers.2.")] = weights[key]
    for index in range(3):
        weights[f"{Q.format(index)}.weight"] = weights[f"{Q.format(index)}.weight"] + model.lora_layers[
            Q.format(index)
        ].delta("default")
    made.load_state_dict(weights)
    return made


def test_weights_are_shared_and_adapters_are_not() -> None:
    model = adapted()
    layers = model.model.model.layers
    assert len(layers) == model.model.config.num_hidden_layers == 3
    assert layers[1] is not layers[2]
    assert layers[1].self_attn.k_proj.weight is layers[2].self_attn.k_proj.weight
    assert layers[1].self_attn.q_proj.holder.weight is layers[2].self_attn.q_proj.holder.weight
    first, second = (model.lora_layers[Q.format(index)].factors("default") for index in (1, 2))
    assert not torch.equal(first[0], second[0])
    assert len({id(p) for p in model.parameters() if not p.requires_grad}) == len(list(llama().parameters()))
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2]
    close(logits(model), logits(deeper(model)))


def test_every_copy_gets_gradients() -> None:
    model = adapted()
    logits(model).square().sum().backward()
    grads = [model.lora_layers[Q.format(index)].factors("default")[1].grad for index in range(3)]
    assert all(grad.any() for grad in grads)
    assert not torch.equal(grads[1], grads[2])


def test_merging_one_copy_does_not_reach_the_other() -> None:
    model, base = adapted(), twin(llama())
    out, wanted = logits(model), deeper(model)
    model.merge_adapter()
    close(logits(model), out, 1e-5)
    for index in range(3):
        close(model.lora_layers[Q.format(index)].holder.weight, wanted.get_submodule(Q.format(index)).weight)
    model.unmerge_adapter()
    for index, original in enumerate((0, 1, 1)):
        weight = model.lora_layers[Q.format(index)].holder.weight
        assert torch.equal(weight, base.get_submodule(Q.format(original)).weight)
    assert torch.equal(logits(model), out)


def test_a_merged_model_has_layers_of_its_own(tmp_path: Any) -> None:
    model = adapted()
    out = logits(model)
    plain = model.merge_and_unload()
    assert len({id(p) for p in plain.parameters()}) == len(list(llama(num_hidden_layers=3).parameters()))
    close(logits(plain), out, 1e-5)
    plain.save_pretrained(tmp_path)
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), out, 1e-5)


def test_unloading_puts_the_stack_back() -> None:
    base = llama()
    stack, parameters = base.model.layers, list(base.parameters())
    with torch.no_grad():
        before = logits(base.requires_grad_(False))
    model = adapted(base)
    model.merge_adapter()
    assert model.unload() is base
    assert base.model.layers is stack
    assert base.config.num_hidden_layers == 2
    assert [layer.self_attn.layer_idx for layer in base.model.layers] == [0, 1]
    assert all(one is other for one, other in zip(base.parameters(), parameters, strict=True))
    assert torch.equal(logits(base), before)
    assert len(adapted(base).model.model.layers) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["no_such"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["no_such"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [99]},
        {"target_modules": ["q_proj"], "layer_replication": [[0, 9]]},
    ],
)
def test_an_error_puts_the_stack_back(settings: dict[str, Any]) -> None:
    base = llama()
    stack, kinds = base.model.layers, [type(module) for module in base.modules()]
    with pytest.raises(LoralabError):
        LoraModel(base, config(**{"layer_replication": RANGES, **settings}))
    assert base.model.layers is stack
    assert base.config.num_hidden_layers == 2
    assert [type(module) for module in base.modules()] == kinds


def test_adapters_of_one_model_stack_its_layers_alike() -> None:
    model = adapted()
    model.attach("second", config("k_proj", layer_replication=RANGES))
    model.attach("third", config("k_proj"))
    assert len(model.lora_layers) == 6
    with pytest.raises(
        ConfigError, match=r"the layers of this model stand as \[\[0, 2\], \[1, 2\]\] for another"
    ):
        model.attach("fourth", config("k_proj", layer_replication=[[0, 1]]))
    plain = LoraModel(llama(), config("q_proj"))
    with pytest.raises(ConfigError, match="stand as the base has them for another"):
        plain.attach("second", config("q_proj", layer_replication=RANGES))


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_layers_of_several_kinds(family: str) -> None:
    sizes: dict[str, Any] = {
        **{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0},
        "layer_types": ["sliding_attention", "full_attention"],
    }
    torch.manual_seed(0)
    base: Any = (
        Qwen2ForCausalLM(Qwen2Config(**sizes, use_sliding_window=True, sliding_window=2))
        if family == "qwen2"
        else Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8, sliding_window=2))
    ).eval()
    before = logits(base)
    model = LoraModel(base, config("q_proj", layer_replication=[[0, 2], [0, 1]]))
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert base.config.layer_types == kinds
    out = logits(model)
    written = base.generate(input_ids=IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(written[:, IDS.shape[1]], out[:, -1].argmax(-1))  # the cache knows of all three
    model.unload()
    assert base.config.layer_types == kinds[:2]
    close(logits(base), before)


def test_a_model_without_a_stack_is_refused() -> None:
    with pytest.raises(TargetError, match="expected a stack of layers called"):
        LoraModel(nn.Sequential(nn.Linear(2, 2)), config("0", layer_replication=RANGES))
