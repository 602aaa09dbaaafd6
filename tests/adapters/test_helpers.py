"""Small helpers, conversions and optimizers under PEFT's names, beside PEFT's own."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer, create_riemannian_optimizer
from peft.tuners.tuners_utils import check_target_module_exists as their_check
from torch import nn
from torch.optim import SGD, AdamW
from transformers import LlamaConfig, LlamaForCausalLM

from loralab import LoraConfig, PeftModel, get_peft_model, read_adapter
from loralab.adapters import helpers, inspecting, optimizers
from loralab.adapters.conversion import convert_to_lora, save_as_lora
from loralab.adapters.functional import inject_adapter_in_model
from loralab.adapters.hotswap import (
    check_hotswap_configs_compatible,
    hotswap_adapter,
    hotswap_adapter_from_state_dict,
    prepare_model_for_compiled_hotswap,
)
from loralab.adapters.peft_tables import BufferDict, fsdp_auto_wrap_policy, transpose
from loralab.adapters.state_dict import get_peft_model_state_dict
from loralab.errors import AdapterError, ConfigError

CONFIG: dict[str, Any] = {"r": 3, "lora_alpha": 6, "target_modules": ["0", "2"], "init_lora_weights": False}
X = torch.linspace(-1, 1, 12).view(3, 4)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def ours(**settings: Any) -> PeftModel:
    base = net()
    torch.manual_seed(1)
    return get_peft_model(base, LoraConfig(**(CONFIG | settings)))


def theirs(**settings: Any) -> Any:
    base = net()
    torch.manual_seed(1)
    return peft.get_peft_model(base, peft.LoraConfig(**(CONFIG | settings)))


def llama(tied: bool = False) -> LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, tie_word_embeddings=tied, **sizes))


def test_a_rescaled_adapter_goes_part_of_the_way() -> None:
    model = ours()
    full, layer = model(X), model.get_base_model()[0]
    whole = layer.delta("default")
    with helpers.rescale_adapter_scale(model, 0.25):
        assert torch.allclose(layer.delta("default"), whole / 4)
        with peft.helpers.rescale_adapter_scale(other := theirs(), 0.25):
            torch.testing.assert_close(model(X), other(X))
    assert torch.equal(model(X), full)
    with helpers.rescale_adapter_scale(inject_adapter_in_model(LoraConfig(**CONFIG), net()), 0):
        pass
    for wrong in (None, True, "1"):
        with (
            pytest.raises(ConfigError, match="expected a number"),
            helpers.rescale_adapter_scale(model, wrong),
        ):
            pass
    with pytest.raises(ConfigError, match="no adapted layers"), helpers.rescale_adapter_scale(net(), 0.5):
        pass


def test_a_scale_that_compiled_code_reads_stays_the_same_tensor() -> None:
    model = ours()
    prepare_model_for_compiled_hotswap(model, target_rank=4)
    scaling = model.get_base_model()[0].scaling["default"]
    full = model(X)
    with helpers.rescale_adapter_scale(model, 0.5):
        assert model.get_base_model()[0].scaling["default"] is scaling
        assert not torch.equal(model(X), full)
    assert torch.equal(model(X), full)


def test_whether_a_folder_holds_an_adapter(tmp_path: Path) -> None:
    ours().save_pretrained(tmp_path / "adapter")
    (tmp_path / "nothing").mkdir()
    assert helpers.check_if_peft_model(tmp_path / "adapter")
    assert not helpers.check_if_peft_model(tmp_path / "nothing")
    assert not helpers.check_if_peft_model(tmp_path / "nowhere")


def test_contexts_that_have_nothing_to_do() -> None:
    model = ours(use_dora=True)
    wanted = model(X)
    with helpers.disable_input_dtype_casting(model), helpers.DoraCaching():
        assert torch.equal(model(X), wanted)
    helpers.DoraCaching(enabled=False)


def test_signatures_are_the_bases() -> None:
    model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM"))
    helpers.update_signature(model)
    base = inspect.signature(LlamaForCausalLM.forward).parameters
    assert list(inspect.signature(model.forward).parameters) == list(base)[1:]
    assert "max_new_tokens" not in inspect.signature(model.generate).parameters
    assert "generation_config" in inspect.signature(model.generate).parameters
    ids = torch.tensor([[1, 2]])
    assert model.generate(inputs=ids, max_new_tokens=2, do_sample=False).shape == (1, 4)
    with pytest.raises(ConfigError, match="method is 'x'"):
        helpers.update_signature(model, "x")  # type: ignore[arg-type]


def test_mixed_precision_and_shifted_tokens() -> None:
    model = ours()
    helpers.cast_mixed_precision_params(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    labels = torch.tensor([[5, 6, -100], [7, -100, -100]])
    assert torch.equal(helpers.shift_tokens_right(labels, 0, 1), peft.shift_tokens_right(labels, 0, 1))
    with pytest.raises(ConfigError, match="pad_token_id"):
        helpers.shift_tokens_right(labels, None, 1)  # type: ignore[arg-type]
    assert helpers.infer_device() == peft.utils.infer_device()


NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.mlp.up_proj",
    "model.layers.1.self_attn.v_proj",
    "lm_head",
]
TARGETS: dict[str, dict[str, Any]] = {
    "list": {"target_modules": ["q_proj", "up_proj"]},
    "regex": {"target_modules": r".*\.1\..*_proj"},
    "excluded": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "layers": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    "saved": {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("settings", TARGETS.values(), ids=TARGETS)
def test_targets_are_pefts(settings: dict[str, Any]) -> None:
    for name in NAMES:
        wanted = bool(their_check(peft.LoraConfig(**settings), name))
        assert inspecting.check_target_module_exists(LoraConfig(**settings), name) is wanted, name


def test_how_a_model_hangs_together() -> None:
    model = get_peft_model(llama(tied=True), LoraConfig(target_modules=["q_proj"]))
    found = inspecting.inspect_matched_modules(model.base_model)
    assert found["matched"] == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert "lm_head" in found["unmatched"]
    assert inspecting.module_names_tied_with_embedding(model) == ["lm_head"]
    assert inspecting.module_names_tied_with_embedding(llama()) == []
    assert inspecting.no_split_modules(model) == {"LlamaDecoderLayer"}
    prefixes = inspecting.key_prefixes(model, "default")
    kept = inspecting.under_prefixes(model.state_dict(), prefixes)
    assert kept.keys() == {key for key in model.state_dict() if ".lora_" in key}
    parent, module, name = inspecting.get_submodules(llama(), "model.layers.0.mlp")
    assert getattr(parent, name) is module
    names = [f"layers.{i}.{kind}_proj" for i in range(30) for kind in "qkv"]
    wanted = [n for n in names if n.endswith("q_proj")]
    others = [n for n in names if n not in wanted]
    assert inspecting.find_minimal_target_modules(wanted, others) == {"q_proj"}
    with pytest.raises(ConfigError, match="a target and as another"):
        inspecting.find_minimal_target_modules(wanted, wanted)
    config = inspecting.include_all_linear_layers(LoraConfig(target_modules="all-linear"), llama())
    assert len(config.target_modules or ()) == 14
    assert inspecting.include_all_linear_layers(LoraConfig(target_modules=["x"]), llama()).target_modules == {
        "x"
    }


def test_small_parts() -> None:
    buffers = BufferDict({"a": X}, persistent=True)
    buffers["b"] = X + 1
    assert list(buffers) == list(buffers.keys()) == ["a", "b"]
    assert len(buffers) == len(buffers.values()) == len(buffers.items()) == 2
    del buffers["a"]
    assert "a" not in buffers
    assert list(buffers.state_dict()) == ["b"]
    with pytest.raises(KeyError):
        buffers["a"]
    assert transpose(X, False) is X
    assert transpose(X, True).shape == (4, 3)
    assert isinstance(transpose(nn.Parameter(X), True), nn.Parameter)
    model = ours()
    policy = fsdp_auto_wrap_policy(model)
    units = [name for name, m in model.named_modules() if policy(m, recurse=False, nonwrapped_numel=1)]
    assert units == [f"base_model.model.{i}.lora_{s}.default" for i in (0, 2) for s in "AB"]


@pytest.mark.parametrize("rank", [2, 0.9])
@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["plain", "rslora", "dora"]
)
def test_an_adapter_as_a_plain_lora(tmp_path: Path, rank: float, settings: dict[str, Any]) -> None:
    model = ours(**settings)
    config, tensors = convert_to_lora(model, rank)
    for index in (0, 2):
        delta = model.get_base_model()[index].delta("default").detach()
        a, b = (tensors[f"base_model.model.{index}.lora_{side}.weight"] for side in "AB")
        u, s, v = torch.linalg.svd(delta)
        kept = a.shape[0]
        if isinstance(rank, int):
            assert kept == min(rank, len(s))
        else:
            share = s.square().cumsum(0) / s.square().sum()
            assert share[kept - 1] >= rank - 1e-6
            assert kept == 1 or share[kept - 2] < rank
        torch.testing.assert_close(b @ a, u[:, :kept] @ s[:kept].diag() @ v[:kept], atol=1e-5, rtol=1e-4)
    save_as_lora(tmp_path, model, rank)
    assert read_adapter(tmp_path).config == dataclasses.replace(config, inference_mode=True)
    loaded = PeftModel.from_pretrained(net(), tmp_path)
    reference = peft.PeftModel.from_pretrained(net(), tmp_path)
    torch.testing.assert_close(loaded(X), reference(X))


def test_what_cannot_be_converted() -> None:
    for rank in (0, -1, 1.5, True, 0.0):
        with pytest.raises(ConfigError, match="rank is"):
            convert_to_lora(ours(), rank)
    with pytest.raises(AdapterError, match="only the deltas of linear layers"):
        convert_to_lora(ours(target_modules=["0"], modules_to_save=["2"]), 2)
    with pytest.raises(AdapterError, match="no adapter 'x'"):
        convert_to_lora(ours(), 2, "x")


def train(model: Any, make: Callable[[Any], torch.optim.Optimizer]) -> list[torch.Tensor]:
    optimizer = make(model)
    for _ in range(4):
        optimizer.zero_grad()
        (model(X) - 1).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for name, parameter in model.named_parameters() if "lora_" in name]


def close(mine: list[torch.Tensor], wanted: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    assert len(mine) == len(wanted) == 4
    for one, two in zip(mine, wanted, strict=True):
        torch.testing.assert_close(one, two, atol=tolerance, rtol=tolerance * 10)


@pytest.mark.parametrize(
    "settings", [{}, {"lora_bias": True}, {"use_dora": True}], ids=["plain", "bias", "dora"]
)
def test_lora_plus(settings: dict[str, Any]) -> None:
    options: dict[str, Any] = {"lr": 1e-2, "loraplus_lr_ratio": 8, "loraplus_weight_decay": 0.1}
    mine = optimizers.create_loraplus_optimizer(ours(**settings), AdamW, **options)
    wanted = create_loraplus_optimizer(theirs(**settings), AdamW, **options)
    for group, other in zip(mine.param_groups, wanted.param_groups, strict=True):
        assert sorted(p.shape for p in group["params"]) == sorted(p.shape for p in other["params"])
        assert (group["lr"], group["weight_decay"]) == (other["lr"], other["weight_decay"])
    if not settings:
        close(
            train(ours(), lambda m: optimizers.create_loraplus_optimizer(m, AdamW, **options)),
            train(theirs(), lambda m: create_loraplus_optimizer(m, AdamW, **options)),
        )


def test_lora_plus_has_a_rate_for_embeddings() -> None:
    base = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3))
    model = get_peft_model(base, LoraConfig(target_modules=["0", "1"]))
    groups = optimizers.create_loraplus_optimizer(model, SGD, lr=1.0, loraplus_lr_ratio=2.0).param_groups
    assert [(len(group["params"]), group["lr"]) for group in groups] == [
        (1, 1.0),
        (2, 1e-6),
        (1, 2.0),
        (0, 2.0),
    ]


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_riemannian_steps(kind: Any) -> None:
    close(
        train(ours(), lambda m: optimizers.create_riemannian_optimizer(m, kind, lr=1e-2)),
        train(theirs(), lambda m: create_riemannian_optimizer(m, kind, lr=1e-2)),
    )
    model = ours()
    model.set_requires_grad("default", False)
    with pytest.raises(ConfigError, match="nothing to precondition"):
        optimizers.create_riemannian_optimizer(model, kind, lr=1e-2)
    optimizer = optimizers.create_riemannian_optimizer(ours(), kind, lr=1e-2)
    with pytest.raises(ConfigError, match="closure"):
        optimizer.step(lambda: 0.0)


def test_lora_fa_leaves_a_alone_and_steps_b_as_the_weight_would_go() -> None:
    model = ours()
    before = [p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n]
    mine = train(model, lambda m: optimizers.create_lorafa_optimizer(m, 3, 6, lr=1e-2))
    assert all(torch.equal(a, p) for a, p in zip(before, mine[::2], strict=True))
    # PEFT multiplies in bf16 where it can.
    close(mine, train(theirs(), lambda m: create_lorafa_optimizer(m, r=3, lora_alpha=6, lr=1e-2)), 2e-3)
    model.set_requires_grad("default", False)
    with pytest.raises(ConfigError, match="nothing to train"):
        optimizers.create_lorafa_optimizer(model, 3, 6, lr=1e-2)


def test_hotswapping(tmp_path: Path) -> None:
    torch.manual_seed(3)
    other = get_peft_model(net(), LoraConfig(**(CONFIG | {"r": 2, "lora_alpha": 5})))
    other.save_pretrained(tmp_path)
    model = ours()
    prepare_model_for_compiled_hotswap(model, target_rank=4)
    factor = model.get_base_model()[0].lora_A["default"].weight
    hotswap_adapter(model, tmp_path, "default")
    assert model.get_base_model()[0].lora_A["default"].weight is factor
    torch.testing.assert_close(model(X), other(X))
    again = ours()
    config, state = other.peft_config["default"], get_peft_model_state_dict(other)
    with pytest.raises(AdapterError, match="no adapter 'poet'"):
        hotswap_adapter_from_state_dict(again, state, "poet", config)
    hotswap_adapter_from_state_dict(again, state, "default", config)
    torch.testing.assert_close(again(X), other(X))
    check_hotswap_configs_compatible(LoraConfig(r=3), LoraConfig(r=8, lora_alpha=1))
    with pytest.raises(ConfigError, match="use_dora is False and True"):
        check_hotswap_configs_compatible(LoraConfig(), LoraConfig(use_dora=True))
    with pytest.raises(ConfigError, match="check_compiled"):
        prepare_model_for_compiled_hotswap(again, check_compiled="x")  # type: ignore[arg-type]
