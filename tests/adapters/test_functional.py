"""Adapters in a model that stays what it is, and the tensors of adapters as dictionaries."""

import copy
import pickle
import warnings
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from loralab import LoraConfig, get_peft_model
from loralab.adapters import functional
from loralab.adapters.functional import inject_adapter_in_model, lora_model_of
from loralab.adapters.state_dict import (
    get_base_model_state_dict,
    get_peft_model_state_dict,
    load_peft_weights,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)
from loralab.core.layers import LoraLayer
from loralab.errors import AdapterError, ConfigError

CONFIG: dict[str, Any] = {"r": 2, "target_modules": ["0", "2"], "init_lora_weights": False}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.LayerNorm(3))


def injected(name: str = "default", **settings: Any) -> nn.Module:
    model = net()
    torch.manual_seed(1)
    return inject_adapter_in_model(LoraConfig(**(CONFIG | settings)), model, name)


X = torch.linspace(-1, 1, 12).view(3, 4)


def test_the_model_stays_the_same_object_and_computes_what_a_peft_model_does() -> None:
    model = net()
    torch.manual_seed(1)
    assert inject_adapter_in_model(LoraConfig(**CONFIG), model) is model
    base = net()
    torch.manual_seed(1)
    assert torch.equal(model(X), get_peft_model(base, LoraConfig(**CONFIG))(X))
    assert list(model.peft_config) == ["default"]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{i}.lora_{s}.default.weight" for i in (0, 2) for s in "AB"}


def test_a_second_adapter_switching_and_deleting() -> None:
    model = injected("one")
    one = model(X)
    inject_adapter_in_model(LoraConfig(**CONFIG), model, "two")
    lora = lora_model_of(model)
    assert lora is not None
    assert lora.active_adapters == ["two"]
    two = model(X)
    assert not torch.equal(one, two)
    functional.set_adapter(model, "one")
    assert torch.equal(model(X), one)
    functional.set_requires_grad(model, "two")
    assert all(p.requires_grad for n, p in model.named_parameters() if ".two." in n)
    with pytest.warns(functional.PeftWarning, match=r"'one' is deleted; 'two' runs now\."):
        assert functional.delete_adapter(model, "one", prefix="lora_") == ["two"]
    assert torch.equal(model(X), two)
    assert functional.delete_adapter(model, "two", prefix="lora_") is None
    assert torch.equal(model(X), net()(X))
    inject_adapter_in_model(LoraConfig(**CONFIG), model, "three")
    assert not torch.equal(model(X), net()(X))
    with pytest.raises(AdapterError, match=r"no adapter 'thre'.*Did you mean 'three'"):
        functional.set_adapter(model, "thre")


def test_layers_can_be_switched_one_by_one_as_transformers_and_diffusers_do() -> None:
    model = injected("one")
    inject_adapter_in_model(LoraConfig(**CONFIG), model, "two")
    base, two = net()(X), model(X)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    assert torch.equal(model(X), base)
    for layer in layers:
        layer.enable_adapters(True)
        layer.set_adapter(["one"])
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"{i}.lora_{s}.one.weight" for i in (0, 2) for s in "AB"
    }
    one = model(X)
    for layer in layers:
        layer.set_adapter(["one", "two"])
        layer.set_scale("one", 0.5)
        assert layer.active_adapter == ["one", "two"]
    both = model(X)
    for layer in layers:
        layer.merge(safe_merge=True)
    assert torch.allclose(model(X), both, atol=1e-6)
    for layer in layers:
        layer.enable_adapters(False)
    assert torch.equal(model(X), base)
    for layer in layers:
        layer.enable_adapters(True)
        layer.unmerge()
        layer.set_scale("one", 1.0)
    assert torch.equal(model(X), both) is False
    for layer in layers:
        layer.set_adapter("one")
    assert torch.equal(model(X), one)
    for layer in layers:
        layer.delete_adapter("one")
        assert layer._get_available_adapters() == {"two"}
    assert layers[0].active_adapters == []
    layers[0].set_adapter("two", inference_mode=True)
    assert torch.equal(model(X), two)


def test_layers_taken_out_by_others_are_gone() -> None:
    model = injected()
    for name in ("0", "2"):
        setattr(model, name, getattr(model, name).get_base_layer())
    del model.peft_config
    assert lora_model_of(model) is None
    assert torch.equal(model(X), net()(X))
    inject_adapter_in_model(LoraConfig(**CONFIG), model, "again")
    assert not torch.equal(model(X), net()(X))


def test_what_cannot_be_injected() -> None:
    model = injected()
    with pytest.raises(ConfigError, match="adapter 'default' already"):
        inject_adapter_in_model(LoraConfig(**CONFIG), model)
    wrapped = get_peft_model(net(), LoraConfig(**CONFIG))
    for inside in (wrapped, wrapped.base_model):
        with pytest.raises(ConfigError, match="takes a bare model"):
            inject_adapter_in_model(LoraConfig(**CONFIG), inside)
    with pytest.raises(ConfigError, match="has adapters already"):
        inject_adapter_in_model(LoraConfig(**CONFIG), wrapped.get_base_model())
    with pytest.raises(ConfigError, match="has adapters already"):
        get_peft_model(model, LoraConfig(**CONFIG))
    with pytest.raises(AdapterError, match="has no adapters"):
        functional.set_adapter(net(), "default")


def test_the_keys_of_a_state_dict_choose_the_modules() -> None:
    keys = {
        "base_model.model.2.lora_A.weight": torch.ones(2, 5),
        "base_model.model.2.lora_B.weight": torch.ones(3, 2),
    }
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"]), net(), state_dict=keys)
    assert [name for name, m in model.named_modules() if isinstance(m, LoraLayer)] == ["2"]
    assert not torch.equal(model[2].lora_A["default"].weight, keys["base_model.model.2.lora_A.weight"])


def test_low_cpu_mem_usage_draws_no_random_numbers() -> None:
    model = net()
    torch.manual_seed(5)
    inject_adapter_in_model(LoraConfig(**CONFIG), model, low_cpu_mem_usage=True)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(model(X), net()(X))
    state = get_peft_model_state_dict(injected())
    assert not set_peft_model_state_dict(model, state, low_cpu_mem_usage=True).missing_keys
    assert torch.equal(model(X), injected()(X))


def test_copies_and_pickles_are_models_of_their_own() -> None:
    model = injected()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(X), model(X))
        lora = lora_model_of(other)
        assert lora is not None
        assert lora.model is other
        functional.delete_adapter(other, "default")
        assert torch.equal(other(X), net()(X))
    assert not torch.equal(model(X), net()(X))


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "lora-bias": {"lora_bias": True},
    "saved": {"target_modules": ["0"], "modules_to_save": ["2", "3"]},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "wrapped"])
def test_keys_and_values_are_pefts(settings: dict[str, Any], bare: bool) -> None:
    ours, theirs = LoraConfig(**(CONFIG | settings)), peft.LoraConfig(**(CONFIG | settings))
    torch.manual_seed(2)
    mine = inject_adapter_in_model(ours, net()) if bare else get_peft_model(net(), ours)
    other: Any = peft.inject_adapter_in_model(theirs, net()) if bare else peft.get_peft_model(net(), theirs)
    given = get_peft_model_state_dict(mine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", peft.PeftWarning)  # it takes a bias of B for a broken matrix
        wanted = peft.get_peft_model_state_dict(other)
    assert {key: tensor.shape for key, tensor in given.items()} == {k: t.shape for k, t in wanted.items()}
    result = set_peft_model_state_dict(mine, {key: tensor + 0.5 for key, tensor in wanted.items()})
    assert result.missing_keys == result.unexpected_keys == []
    for key, tensor in get_peft_model_state_dict(mine).items():
        assert torch.equal(tensor, wanted[key] + 0.5), key


def test_what_does_not_match_is_told() -> None:
    model = injected()
    state = get_peft_model_state_dict(model)
    part = {key: tensor for key, tensor in state.items() if not key.startswith("2.")} | {"9.lora_A.weight": X}
    result = set_peft_model_state_dict(model, part)
    assert result.missing_keys == ["2.lora_A.default.weight", "2.lora_B.default.weight"]
    assert result.unexpected_keys == ["9.lora_A.weight"]
    before = {key: tensor.clone() for key, tensor in state.items()}
    wrong = {
        key: torch.zeros(7, 7) if key.startswith("0.lora_A") else tensor + 1 for key, tensor in state.items()
    }
    with pytest.raises(AdapterError, match=r"0\.lora_A\.weight is \[7, 7\], the model needs \[2, 4\]"):
        set_peft_model_state_dict(model, wrong)
    assert all(torch.equal(tensor, before[key]) for key, tensor in get_peft_model_state_dict(model).items())
    found = set_peft_model_state_dict(model, wrong, ignore_mismatched_sizes=True).mismatched_keys
    assert found == [("0.lora_A.default.weight", (7, 7), (2, 4))]
    assert torch.equal(get_peft_model_state_dict(model)["0.lora_B.weight"], before["0.lora_B.weight"] + 1)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_values_may_come_from_the_state_of_the_whole_model(settings: dict[str, Any]) -> None:
    model = get_peft_model(net(), LoraConfig(**(CONFIG | settings)), "poet")
    gathered = {key: tensor.clone() + 1 for key, tensor in model.state_dict().items()}
    own = get_peft_model_state_dict(model, adapter_name="poet")
    given = get_peft_model_state_dict(model, gathered, "poet")
    assert all(torch.equal(given[key], own[key] + 1) for key in own)
    del gathered["base_model.model.0.lora_A.poet.weight"]
    with pytest.raises(AdapterError, match=r"no base_model\.model\.0\.lora_A\.poet\.weight"):
        get_peft_model_state_dict(model, gathered, "poet")


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_base_has_its_own_keys(settings: dict[str, Any]) -> None:
    model = get_peft_model(net(), LoraConfig(**(CONFIG | settings)))
    state = get_base_model_state_dict(model)
    assert {key: t.shape for key, t in state.items()} == {
        key: t.shape for key, t in net().state_dict().items()
    }
    other = {key: torch.full_like(tensor, 0.25) for key, tensor in state.items()}
    set_base_model_state_dict(model, other)
    assert all(torch.equal(t, other[key]) for key, t in get_base_model_state_dict(model).items())
    with pytest.raises(AdapterError, match="x has no place"):
        set_base_model_state_dict(model, other | {"x": X})
    assert set_base_model_state_dict(model, {"0.weight": other["0.weight"]}, strict=False).missing_keys


def test_status_of_a_bare_model() -> None:
    layers = functional.get_layer_status(injected())
    assert [layer.name for layer in layers] == ["0", "2"]
    status = functional.get_model_status(injected())
    theirs = peft.get_model_status(peft.inject_adapter_in_model(peft.LoraConfig(**CONFIG), net()))
    for field in (
        "adapter_model_type",
        "peft_types",
        "trainable_params",
        "total_params",
        "num_adapter_layers",
    ):
        assert getattr(status, field) == getattr(theirs, field), field
    with pytest.raises(AdapterError, match="no adapters"):
        functional.get_layer_status(net())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_status_is_pefts(settings: dict[str, Any]) -> None:
    mine = get_peft_model(net(), LoraConfig(**(CONFIG | settings))).get_model_status()
    theirs = peft.get_peft_model(net(), peft.LoraConfig(**(CONFIG | settings))).get_model_status()
    for field in vars(theirs):
        assert getattr(mine, field) == getattr(theirs, field), field


def test_dtypes() -> None:
    model = inject_adapter_in_model(LoraConfig(**CONFIG), net().bfloat16())

    def dtypes() -> set[torch.dtype]:
        return {p.dtype for n, p in model.named_parameters() if "lora_" in n}

    assert dtypes() == {torch.float32}
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            functional.cast_layer(layer, "default", torch.bfloat16)
    functional.cast_adapter_dtype(model, "default", autocast_adapter_dtype=False)
    assert dtypes() == {torch.bfloat16}
    functional.cast_adapter_dtype(model, "default")
    assert dtypes() == {torch.float32}


def test_weights_alone(tmp_path: Any) -> None:
    model = get_peft_model(net(), LoraConfig(**CONFIG))
    model.save_pretrained(tmp_path)
    wanted = get_peft_model_state_dict(model)

    def same(tensors: dict[str, Tensor]) -> bool:
        return tensors.keys() == wanted.keys() and all(
            torch.equal(tensors[key], wanted[key]) for key in wanted
        )

    assert same(load_peft_weights(tmp_path))
    assert same(peft.load_peft_weights(str(tmp_path), device="cpu"))
    moved = load_peft_weights(tmp_path, key_mapping={r"^0\.": "first."})
    assert "base_model.model.first.lora_A.weight" in moved
    with pytest.raises(ConfigError, match=r"revison='x' has no effect here\. Did you mean 'revision'"):
        load_peft_weights(tmp_path, revison="x")
