"""Attaching, switching, disabling and detaching adapters, also when it fails half-way."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralab.adapters import get_peft_model
from loralab.core.config import LoraConfig
from loralab.core.model import LoraModel
from loralab.errors import AdapterError, ConfigError, LoralabError, TargetError


def config(*targets: str, **settings: Any) -> LoraConfig:
    settings = {"r": 4, "init_lora_weights": False, **settings}
    return LoraConfig(target_modules=list(targets), **settings)


class Head(nn.Module):
    """A layer to adapt and a head to train in full."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_only_the_active_adapters_get_gradients() -> None:
    model = LoraModel(Head(), config("first", modules_to_save=["head"]), "a")
    model.attach("b", config("first", "second"))

    def trained() -> set[str]:
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    a = {"model.first.lora_A.a.weight", "model.first.lora_B.a.weight"}
    a |= {"model.head.modules_to_save.a.weight", "model.head.modules_to_save.a.bias"}
    b = {f"model.{layer}.lora_{side}.b.weight" for layer in ("first", "second") for side in "AB"}
    model.set_adapter("a")
    assert trained() == a
    model.set_adapter("b")
    assert trained() == b
    model.set_adapter(["a", "b"])
    assert trained() == a | b
    model.set_adapter("a", inference_mode=True)
    assert trained() == set()


def test_deleting_an_adapter_leaves_the_others_as_they_were() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    model = LoraModel(Head(), config("first"), "a").eval()
    only_a = model(x)
    model.attach("b", config("first", "second", modules_to_save=["head"]))
    model.set_adapter(["a", "b"])
    model.merge_adapter()
    model.detach("b")
    torch.testing.assert_close(model(x), only_a)
    model.unmerge_adapter()
    assert torch.equal(model(x), only_a)
    assert model.active_adapters == ["a"]
    assert not any(".b." in name for name in model.state_dict())
    with pytest.raises(AdapterError, match=r"no adapter 'b'.*loaded are a"):
        model.set_adapter("b")
    model.attach("b", config("second"))
    assert list(model.peft_config) == ["a", "b"]


def test_deleting_the_last_adapter_leaves_the_base() -> None:
    net, x = Head(), torch.randn(3, 4)
    base = net(x)
    model = LoraModel(net, config("first"))
    model.detach("default")
    assert torch.equal(model(x), base)
    model.attach("new", config("second"))
    model.set_adapter("new")
    assert not torch.equal(model(x), base)


def test_unload_undoes_everything() -> None:
    net, x = Head(), torch.randn(3, 4)
    before, kinds = state(net), [type(module) for module in net.modules()]
    base, head = net(x), net.head
    model = LoraModel(net, config("first", modules_to_save=["head"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    model.merge_adapter()
    assert not torch.equal(model(x), base)
    assert model.unload() is net
    assert net.head is head
    assert [type(module) for module in net.modules()] == kinds
    assert equal(state(net), before)
    assert torch.equal(net(x), base)


def test_merge_and_unload_keeps_the_trained_head() -> None:
    net, x = Head(), torch.randn(3, 4)
    model = LoraModel(net, config("first", modules_to_save=["head"])).eval()
    with torch.no_grad():
        net.head.modules_to_save["default"].weight.add_(1.0)
    before = model(x)
    plain = model.merge_and_unload()
    assert type(plain.head) is nn.Linear
    torch.testing.assert_close(plain(x), before)


def test_disabling_can_be_nested() -> None:
    net, x = Head(), torch.randn(3, 4)
    base = net(x)
    model = get_peft_model(net, config("first", modules_to_save=["head"]))
    adapted = model(x)
    with model.disable_adapter():
        with model.disable_adapter():
            assert torch.equal(model(x), base)
        assert torch.equal(model(x), base)
    assert torch.equal(model(x), adapted)
    with pytest.raises(ZeroDivisionError), model.disable_adapter():
        raise ZeroDivisionError
    assert torch.equal(model(x), adapted)


@pytest.mark.parametrize(
    "broken",
    [
        config("1", "2", r=3),
        config("1", init_lora_weights="nothing"),
        config("1", "nothing"),
        config("1", modules_to_save=["nothing"]),
        config("1", "3"),
    ],
    ids=["rank", "init", "target", "save", "kind"],
)
def test_an_adapter_that_cannot_be_attached_leaves_no_trace(broken: LoraConfig) -> None:
    net = nn.Sequential(*(nn.Conv1d(4, 4, 1, groups=g) for g in (1, 1, 2)), nn.Tanh())
    x = torch.randn(2, 4, 5)
    model = LoraModel(net, config("0", "1"), "a").eval()
    before, kinds = state(model), [type(module) for module in net.modules()]
    expected = model(x)
    with pytest.raises(LoralabError):
        model.attach("b", broken)
    assert equal(state(model), before)
    assert [type(module) for module in net.modules()] == kinds
    assert [layer.adapters for layer in model.lora_layers.values()] == [("a",), ("a",)]
    model.attach("b", config("0"))
    model.set_adapter("b")
    model.set_adapter("a")
    assert torch.equal(model(x), expected)


def test_names_that_cannot_be_used_are_refused() -> None:
    model = LoraModel(Head(), config("first"))
    for name, fault in {"a.b": "dots", "": "word", "__base__": "__base__", "default": "already"}.items():
        with pytest.raises(ConfigError, match=fault):
            model.attach(name, config("first"))
    with pytest.raises(ConfigError, match="already"):
        get_peft_model(get_peft_model(Head(), config("first")), config("first"))


def test_a_failed_first_adapter_leaves_the_model_trainable() -> None:
    net = Head()
    with pytest.raises(TargetError, match="matches no module"):
        get_peft_model(net, config("frist"))
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert type(net.first) is nn.Linear


def test_only_one_adapter_may_train_the_biases_of_the_base() -> None:
    model = LoraModel(Head(), config("first", bias="all"))
    with pytest.raises(ConfigError, match="'default' trains the base's biases"):
        model.attach("b", config("first", bias="lora_only"))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_an_adapter_trains_are_its_own(bias: str) -> None:
    net, x = Head(), torch.randn(3, 4)
    net.second.bias = net.first.bias
    base, before = net(x), state(net)
    model = get_peft_model(net, config("first", bias=bias)).eval()
    with torch.no_grad():
        net.first.bias.add_(1.0)
    adapted = model(x)
    with model.disable_adapter():
        assert torch.equal(model(x), base)
    assert torch.equal(model(x), adapted)
    assert equal(state(model.unload()), before)
