"""`ensure_weight_tying`: what an adapter does to an embedding happens to the head that shares its weight."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralab import PeftModel, get_peft_model
from loralab.core.adapter import Adapter
from loralab.core.model import LoraModel
from loralab.core.targets import walk
from loralab.core.tying import TiedLayer, tied_paths
from loralab.errors import AdapterError, ConfigError, TargetError

from .models import EMBEDDING, HEAD, IDS, close, config, llama, logits, logits_with, small, twin

TARGETS = pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
OPTIMIZERS = pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.AdamW], ids=lambda kind: kind.__name__
)


def adapted(*targets: str, **settings: Any) -> LoraModel:
    model = LoraModel(llama(), config(*targets, ensure_weight_tying=True, **settings)).eval()
    small(model)
    return model


def factors(model: LoraModel) -> tuple[Tensor, Tensor]:
    layer = model.lora_layers[EMBEDDING]
    a, b = layer.factors("default")
    return a, b


def shared_weight(base: nn.Module, a: Tensor, b: Tensor, scaling: float) -> dict[str, Tensor]:
    """The one weight that embedding and head compute with: W + scaling * (B A)^T."""
    return {f"{EMBEDDING}.weight": base.get_submodule(EMBEDDING).weight + scaling * (b @ a).t()}


@TARGETS
def test_both_places_compute_with_one_adapted_weight(targets: list[str]) -> None:
    base, model = twin(llama()), adapted(*targets, lora_alpha=6)
    a, b = factors(model)
    close(logits(model), logits_with(base, shared_weight(base, a, b, 1.5)), 1e-5)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4 * (32 + 16)


@TARGETS
def test_gradients_are_those_of_one_shared_tensor(targets: list[str]) -> None:
    base, model = twin(llama()).double(), adapted(*targets, lora_alpha=6).double()
    logits(model).square().sum().backward()
    a, b = (factor.detach().clone().requires_grad_(True) for factor in factors(model))
    logits_with(base, shared_weight(base, a, b, 1.5)).square().sum().backward()
    for found, wanted in zip(factors(model), (a, b), strict=True):
        close(found.grad / wanted.grad.abs().max(), wanted.grad / wanted.grad.abs().max(), 1e-10)


@OPTIMIZERS
def test_a_step_moves_both_places_by_the_same_and_once(optimizer: Any) -> None:
    base, model = twin(llama()), adapted("lm_head", "q_proj")
    free = [p for name, p in model.named_parameters() if p.requires_grad and "q_proj" not in name]
    steps = optimizer(free, lr=0.05)
    a, b = (factor.detach().clone().requires_grad_(True) for factor in factors(model))
    wanted = optimizer([a, b], lr=0.05)
    queries = {
        name: value + model.lora_layers[name.removesuffix(".weight")].delta("default")
        for name, value in base.state_dict().items()
        if "q_proj" in name
    }
    for _ in range(4):
        logits(model).square().mean().backward()
        logits_with(base, shared_weight(base, a, b, 2.0) | queries).square().mean().backward()
        for stepper in (steps, wanted):
            stepper.step()
            stepper.zero_grad()
    for found, expected in zip(factors(model), (a, b), strict=True):
        close(found, expected, 1e-4)
    tensors = model.adapter("default").tensors
    assert torch.equal(tensors[f"{HEAD}.lora_A.weight"], tensors[f"{EMBEDDING}.lora_embedding_B"].t())
    assert torch.equal(tensors[f"{HEAD}.lora_B.weight"], tensors[f"{EMBEDDING}.lora_embedding_A"].t())


def test_merging_keeps_the_two_tied() -> None:
    model = adapted("embed_tokens", "q_proj")
    out = logits(model)
    model.merge_adapter()
    close(logits(model), out, 1e-5)
    embedding, head = (model.lora_layers[path].holder for path in (EMBEDDING, HEAD))
    assert embedding.weight is head.weight
    model.disable_adapter_layers()
    close(logits(model), logits(llama()), 0)
    assert embedding.weight is head.weight
    model.enable_adapter_layers()
    model.unmerge_adapter()
    assert torch.equal(logits(model), out)
    plain = model.merge_and_unload()
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert plain.config.tie_word_embeddings
    close(logits(plain), out, 1e-5)


def test_unloading_keeps_the_two_tied() -> None:
    base = llama()
    weight = base.lm_head.weight
    model = LoraModel(base, config("embed_tokens", ensure_weight_tying=True))
    model.merge_adapter()
    assert model.unload() is base
    assert base.lm_head.weight is base.model.embed_tokens.weight is weight
    assert tied_paths(dict(walk(base)), EMBEDDING) == [HEAD]


def test_two_tied_adapters() -> None:
    model = adapted("embed_tokens")
    torch.manual_seed(4)
    model.attach("second", config("lm_head", ensure_weight_tying=True, r=2))
    small(model)
    outs = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        outs[name] = logits(model)
    model.set_adapter(["default", "second"])
    both = logits(model)
    model.merge_adapter()
    close(logits(model), both, 1e-5)
    model.detach("default")
    assert model.merged_adapters == ["second"]
    model.set_adapter("second")
    close(logits(model), outs["second"], 1e-5)
    embedding, head = (model.lora_layers[path].holder for path in (EMBEDDING, HEAD))
    assert embedding.weight is head.weight


def test_dropout_and_disabling() -> None:
    model = adapted("embed_tokens", lora_dropout=0.5)
    still = logits(model)
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(logits(model), still)
    model.eval()
    model.disable_adapter_layers()
    close(logits(model), logits(llama()), 0)


def test_files_hold_both_and_go_round(tmp_path: Path) -> None:
    model = get_peft_model(llama(), config("lm_head", ensure_weight_tying=True)).eval()
    small(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(llama(), tmp_path)
    assert torch.equal(logits(again), logits(model))
    tensors = again.base_model.adapter("default").tensors
    assert list(tensors) == [
        f"{EMBEDDING}.lora_embedding_A",
        f"{EMBEDDING}.lora_embedding_B",
        f"{HEAD}.lora_A.weight",
        f"{HEAD}.lora_B.weight",
    ]
    assert isinstance(again.base_model.lora_layers[HEAD], TiedLayer)


@pytest.mark.parametrize("targets", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}])
def test_a_file_whose_two_halves_differ_is_refused(targets: dict[str, Any]) -> None:
    settings = {"target_modules": ["q_proj"]} | targets
    model = LoraModel(llama(), config(ensure_weight_tying=True, **settings))
    adapter = model.adapter("default")
    tensors = {key: tensor.detach().clone() for key, tensor in adapter.tensors.items()}
    good = Adapter(adapter.config, dict(tensors))
    model.load("default", good)
    key = next(key for key in tensors if key.startswith(HEAD))
    tensors[key] += 1
    bad, before = Adapter(adapter.config, tensors), logits(model)
    for load in (
        lambda: LoraModel(llama(), adapter.config, "default", bad),
        lambda: model.load("default", bad),
        lambda: model.attach("second", adapter.config, bad),
    ):
        with pytest.raises(AdapterError, match=r"lm_head\..* is not what 'model.embed_tokens' has"):
            load()
    assert torch.equal(logits(model), before)
    assert list(model.peft_config) == ["default"]


# modules in full


def in_full(*names: str) -> LoraModel:
    made = config("q_proj", modules_to_save=list(names), ensure_weight_tying=True)
    return LoraModel(llama(), made).eval()


SAVED = pytest.mark.parametrize("names", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])


def copies(model: LoraModel) -> tuple[nn.Parameter, nn.Parameter]:
    embedding, head = (model.wrappers[path].modules_to_save["default"] for path in (EMBEDDING, HEAD))
    return embedding.weight, head.weight


@SAVED
def test_one_full_copy_for_both(names: list[str]) -> None:
    model = in_full(*names)
    embedding, head = copies(model)
    assert embedding is head
    assert head is not model.wrappers[HEAD].original_module.weight
    logits(model).square().sum().backward()
    base = twin(llama())
    weight = embedding.detach().clone().requires_grad_(True)
    queries = {
        f"{path}.weight": layer.original_weight + layer.delta("default")
        for path, layer in model.lora_layers.items()
    }
    logits_with(base, {f"{EMBEDDING}.weight": weight, **queries}).square().sum().backward()
    close(embedding.grad / weight.grad.abs().max(), weight.grad / weight.grad.abs().max(), 1e-5)


@SAVED
@OPTIMIZERS
def test_full_copies_stay_one_in_training_merging_and_files(
    names: list[str], optimizer: Any, tmp_path: Path
) -> None:
    model = get_peft_model(llama(), config("q_proj", modules_to_save=names, ensure_weight_tying=True))
    steps = optimizer([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        steps.step()
        steps.zero_grad()
    model.eval()
    out = logits(model)
    embedding, head = copies(model.base_model)
    assert embedding is head
    tensors = model.base_model.adapter("default").tensors
    assert torch.equal(tensors[f"{EMBEDDING}.weight"], tensors[f"{HEAD}.weight"])
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(llama(), tmp_path)
    assert torch.equal(logits(again), out)
    one, other = copies(again.base_model)
    assert one is other
    plain = model.merge_and_unload()
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert plain.config.tie_word_embeddings
    close(logits(plain), out, 1e-5)


@pytest.mark.parametrize(
    ("tied", "settings", "error", "fault"),
    [
        (
            False,
            {"target_modules": ["embed_tokens"]},
            TargetError,
            "no module .* shares the input embedding's",
        ),
        (
            True,
            {"target_modules": ["q_proj"]},
            TargetError,
            "the adapter leaves 'model.embed_tokens' and lm_head",
        ),
        (True, {"target_modules": ["lm_head"], "use_dora": True}, ConfigError, "goes with plain LoRA"),
        (
            True,
            {"target_modules": [], "trainable_token_indices": {"embed_tokens": [1], "lm_head": [2]}},
            ConfigError,
            "'lm_head' shares the weight of 'model.embed_tokens' and has",
        ),
    ],
)
def test_what_is_refused(tied: bool, settings: dict[str, Any], error: type[Exception], fault: str) -> None:
    base = llama(tied)
    with pytest.raises(error, match=fault):
        LoraModel(base, config(ensure_weight_tying=True, **settings))
    assert [type(module) for module in base.modules()] == [type(module) for module in llama().modules()]


def test_a_head_follows_or_has_an_adapter_of_its_own() -> None:
    model = adapted("embed_tokens")
    with pytest.raises(TargetError, match="'lm_head' follows the embedding for another adapter"):
        model.attach("second", config("lm_head"))
    model.attach("embedding alone", config("embed_tokens"))
    assert model.lora_layers[HEAD].adapters == ("default",)
    model = LoraModel(llama(), config("lm_head"))
    with pytest.raises(TargetError, match="'lm_head' has an adapter of its own already"):
        model.attach("second", config("embed_tokens", ensure_weight_tying=True))
    assert list(model.peft_config) == ["default"]
