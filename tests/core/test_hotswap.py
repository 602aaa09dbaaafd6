"""Other values for an adapter in place: nothing is compiled again, and nothing of the old values stays."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from loralab.core.adapter import Adapter
from loralab.core.hotswap import hotswap, prepare_for_hotswap
from loralab.core.model import LoraModel
from loralab.errors import AdapterError, ConfigError

from .conftest import KINDS
from .models import EMBEDDING, HEAD, close, config, llama, logits, mixtral, small
from .test_identities import attached

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Layers of three kinds in a row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8, bias=False)
        self.conv = nn.Conv1d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.tanh(self.second(torch.tanh(self.first(x)))).unsqueeze(1))


ALL = ["first", "second", "conv"]


def trained(*targets: str, seed: int = 1, **settings: Any) -> LoraModel:
    torch.manual_seed(seed)
    model = LoraModel(Net(), config(*(targets or ALL), **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + torch.rand_like(parameter))
    return model


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}], ids=["plain", "dora"])
@torch.no_grad()
def test_a_compiled_model_takes_other_adapters_as_it_is(variant: dict[str, Any]) -> None:
    torch._dynamo.reset()
    others = [
        trained(r=8, lora_alpha=3, seed=2, **variant),
        trained("second", r=2, seed=3, **variant),
        trained(r=3, lora_alpha=5, use_rslora=True, rank_pattern={"conv": 1}, seed=4, **variant),
        trained("first", "conv", r=5, alpha_pattern={"first": 20}, seed=5, **variant),
    ]
    model = trained(**variant)
    before = model(X)
    prepare_for_hotswap(model, 8)
    close(model(X), before)
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    close(compiled(X), before)
    frames = counter.frame_count
    for other in [*others, *others[::-1]]:
        hotswap(model, "default", other.adapter("default"))
        close(compiled(X), other(X), 1e-5)
        close(model(X), other(X), 1e-5)
    assert counter.frame_count == frames > 0
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places


@torch.no_grad()
def test_what_is_saved_after_a_swap_is_the_new_adapter() -> None:
    model = trained()
    prepare_for_hotswap(model, 8)
    for other in (
        trained(r=2, lora_alpha=3, seed=2),
        trained("second", seed=3),
        trained(r=3, lora_alpha=5, use_rslora=True, alpha_pattern={"conv": 9}, seed=4),
    ):
        hotswap(model, "default", other.adapter("default"))
        adapter = model.adapter("default")
        again = LoraModel(Net(), adapter.config, "default", adapter).eval()
        close(again(X), other(X), 1e-5)
        model.merge_adapter()
        close(model(X), other(X), 1e-5)
        model.unmerge_adapter()
        close(model(X), other(X), 1e-5)


@pytest.mark.parametrize(
    "name", ["linear", "gpt2-conv1d", "embedding", "conv2d", "conv3d", "multihead", "parameter"]
)
@torch.no_grad()
def test_room_changes_no_output(name: str) -> None:
    model, x = attached(KINDS[name].net()), KINDS[name].x()
    before = model(x)
    prepare_for_hotswap(model, 7)
    close(model(x), before)
    assert {layer.r["default"] for layer in model.lora_layers.values()} == {7}
    other = attached(KINDS[name].net(), lora_alpha=3)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    hotswap(model, "default", other.adapter("default"))
    close(model(x), other(x))
    assert model.peft_config["default"].lora_alpha == pytest.approx(3 / 4 * 7)


@torch.no_grad()
def test_experts_take_other_values_and_scales() -> None:
    names = ["experts.gate_up_proj", "experts.down_proj"]
    model = LoraModel(mixtral(), config(target_parameters=names))
    torch.manual_seed(5)
    other = LoraModel(mixtral(), config(target_parameters=names, lora_alpha=3))
    small(other)
    prepare_for_hotswap(model)
    hotswap(model, "default", other.adapter("default"))
    close(logits(model), logits(other), 1e-5)


@torch.no_grad()
def test_tied_layers() -> None:
    tied = {"ensure_weight_tying": True}
    model = LoraModel(llama(), config("embed_tokens", "q_proj", **tied))
    other = LoraModel(llama(), config("embed_tokens", r=3, lora_alpha=2, **tied))
    for each in (model, other):
        small(each)
    before = logits(model)
    prepare_for_hotswap(model, 8)
    close(logits(model), before, 1e-5)
    assert model.lora_layers[HEAD].r == model.lora_layers[EMBEDDING].r == {"default": 8}
    hotswap(model, "default", other.adapter("default"))
    close(logits(model), logits(other), 1e-5)
    adapter = model.adapter("default")
    close(logits(LoraModel(llama(), adapter.config, "default", adapter)), logits(other), 1e-5)


def test_training_goes_on_after_a_swap() -> None:
    model = trained()
    prepare_for_hotswap(model, 8)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    hotswap(model, "default", trained(r=8, seed=2).adapter("default"))
    before = model(X).square().mean()
    before.backward()
    optimizer.step()
    assert model(X).square().mean() < before


def refused(model: LoraModel, adapter: Adapter, fault: str) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config_before, out = copy.deepcopy(model.peft_config), model(X)
    with pytest.raises(AdapterError, match=fault) as caught:
        hotswap(model, "default", adapter)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.peft_config == config_before
    assert torch.equal(model(X), out)


@pytest.mark.parametrize(
    ("targets", "settings", "fault"),
    [
        (ALL, {"r": 9}, r"first\.lora_A\.weight is \[9, 6\], and the attached adapter has \[8, 6\]"),
        (ALL, {"use_dora": True}, "use_dora is True in the new adapter and None|use_dora is True"),
        (["first", "second"], {"lora_bias": True}, "lora_bias is True|has no"),
        (ALL, {"bias": "all"}, "bias is 'all' in the new adapter"),
        (["first"], {"modules_to_save": ["conv"]}, r"modules_to_save is \['conv'\] in the new adapter"),
        (["first"], {"target_parameters": ["second.weight"]}, r"target_parameters is \['second.weight'\]"),
    ],
)
def test_what_changes_more_than_numbers_is_refused(
    targets: list[str], settings: dict[str, Any], fault: str
) -> None:
    net = Net()
    net.second = nn.Linear(8, 8)
    model = trained()
    prepare_for_hotswap(model, 8)
    refused(model, LoraModel(net, config(*targets, **settings)).adapter("default"), fault)


def test_a_module_without_a_place_is_refused() -> None:
    model = trained("first")
    refused(model, trained().adapter("default"), "has no place in the attached adapter 'default', and 3 more")
    adapter = trained("first").adapter("default")
    half = Adapter(adapter.config, {"first.lora_A.weight": adapter.tensors["first.lora_A.weight"]})
    refused(model, half, r"first\.lora_B\.weight is missing from the new adapter")
    with pytest.raises(AdapterError, match="there is no adapter 'other' to swap"):
        hotswap(model, "other", adapter)
    model.merge_adapter()
    refused(model, adapter, "'default' is merged; call unmerge_adapter")


def test_room_is_made_everywhere_or_nowhere() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1, groups=2))
    model = LoraModel(net, config("0", "1"))
    with pytest.raises(ConfigError, match="the rank of '1' cannot be padded: it belongs to groups"):
        prepare_for_hotswap(model, 8)
    assert {layer.r["default"] for layer in model.lora_layers.values()} == {4}
    assert model.lora_layers["0"].factors("default")[0].shape == (4, 4)
    prepare_for_hotswap(model)
    with pytest.raises(ConfigError, match="target_rank is 2, and adapter 'default' has rank 4"):
        prepare_for_hotswap(LoraModel(Net(), config("first")), 2)
    with pytest.raises(ConfigError, match="no adapter to make room for"):
        prepare_for_hotswap(Net())
    with pytest.raises(ConfigError, match="compiled already"):
        prepare_for_hotswap(torch.compile(trained(), backend="eager"))
