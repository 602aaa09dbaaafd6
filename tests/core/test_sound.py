"""Nothing leaks from one adapter to another, and nothing that fails leaves a trace."""

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from loralab.core.config import LoraConfig
from loralab.core.model import LoraModel
from loralab.errors import AdapterError, LoralabError, TargetError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.head_norm = nn.Linear(8, 6), nn.LayerNorm(6), nn.LayerNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.head_norm(self.norm(self.first(x))))


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def test_an_error_of_any_kind_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LoraModel(Net(), LoraConfig(target_modules=["head"], init_lora_weights=False)).eval()
    before, names = model(X), [name for name, _ in model.named_parameters()]
    head = type(model.lora_layers["head"])
    monkeypatch.setattr(head, "scale_adapter", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.attach("p", LoraConfig(target_modules=["first", "head"], init_lora_weights="pissa"))
    assert torch.equal(model(X), before)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora"])
def test_a_rank_above_that_of_the_weight_adds_nothing_at_first(init: str) -> None:
    expected = Net()(X)
    model = LoraModel(Net(), LoraConfig(r=20, target_modules=["first", "head"], init_lora_weights=init))
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)
    assert model.lora_layers["head"].r["default"] == 20


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_base_weight_of_its_own_runs_with_its_adapter_only(init: str) -> None:
    base = Net()(X)
    model = LoraModel(Net(), LoraConfig(r=2, target_modules=["first"], init_lora_weights=init)).eval()
    own = model.lora_layers["first"].weight.clone()
    with torch.no_grad():
        for tensor in model.lora_layers["first"].tensors("default").values():
            tensor.mul_(1.5)
    trained = model(X)
    model.attach("b", LoraConfig(target_modules=["head"], init_lora_weights=False))
    assert torch.equal(model(X), trained)
    model.disable_adapter_layers()
    assert torch.equal(model(X), base)
    model.enable_adapter_layers()
    assert torch.equal(model(X), trained)
    model.set_adapter("b")
    other = model(X)
    alone = LoraModel(Net(), LoraConfig(target_modules=["head"]), "b", model.adapter("b"))
    assert torch.equal(other, alone(X))
    model.merge_adapter(["default"])
    model.set_adapter("default")
    torch.testing.assert_close(model(X), trained)
    model.unmerge_adapter()
    assert torch.equal(model(X), trained)
    assert torch.equal(model.lora_layers["first"].weight, own)
    with pytest.raises(AdapterError, match="cannot be mixed"), model.rows(["default", "b", "b", "b"]):
        model(X)
    model.detach("default")
    model.disable_adapter_layers()
    assert torch.equal(model.unload()(X), base)


def with_own_base() -> LoraModel:
    model = LoraModel(Net(), LoraConfig(r=2, target_modules=["first"], init_lora_weights="pissa")).eval()
    with torch.no_grad():
        for tensor in model.lora_layers["first"].tensors("default").values():
            tensor.mul_(1.5)
    return model


def test_a_failed_attach_leaves_a_base_weight_of_its_own_in_place() -> None:
    model = with_own_base()
    before = model(X)
    with pytest.raises(LoralabError, match="must be even"):
        model.attach("b", LoraConfig(r=3, target_modules=["first"], init_lora_weights="orthogonal"))
    assert torch.equal(model(X), before)


def test_a_base_weight_of_its_own_follows_what_is_said_at_the_layers() -> None:
    """As transformers and diffusers switch: layer by layer."""
    model = with_own_base()
    model.attach("b", LoraConfig(r=3, target_modules=["head"]))
    before, layers = model(X), list(model.lora_layers.values())
    for enabled, expected in ((False, Net()(X)), (True, before)):
        for layer in layers:
            layer.enable_adapters(enabled)
        assert torch.equal(model(X), expected)
    for name, expected in (("b", Net()(X)), ("default", before)):
        for layer in layers:
            layer.set_adapter(name)
        assert torch.equal(model(X), expected)


def test_an_adapter_merged_beside_one_with_a_base_weight_of_its_own() -> None:
    model = with_own_base()
    model.attach("b", LoraConfig(r=3, target_modules=["first"], init_lora_weights=False))
    model.set_adapter(["default", "b"])
    model.eval()
    both, layer = model(X), model.lora_layers["first"]
    layer.merge(adapter_names=["default"])
    layer.merge(adapter_names=["b"])
    torch.testing.assert_close(model(X), both)
    layer.unmerge()
    assert torch.equal(model(X), both)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_dora_over_a_base_weight_of_its_own_adds_nothing_at_first(init: str) -> None:
    config = LoraConfig(r=2, target_modules=["first"], init_lora_weights=init, use_dora=True)
    model = LoraModel(Net(), config)
    torch.testing.assert_close(model(X), Net()(X), rtol=1e-4, atol=1e-5)


def test_biases_run_with_their_adapter_only() -> None:
    base = Net()(X)
    model = LoraModel(Net(), LoraConfig(target_modules=["first"], bias="all"))
    model.lora_layers["first"].bias.data.add_(100)
    moved = model(X)
    model.attach("b", LoraConfig(target_modules=["head"]))
    model.set_adapter("b")
    assert torch.equal(model(X), base)
    with model.rows(["b", "__base__", "b", "b"]):
        assert torch.equal(model(X), base)
    with pytest.raises(AdapterError, match="'default' goes with other biases"), model.rows(["default"] * 4):
        model(X)
    saved = model.adapter("default").tensors["first.base_layer.bias"]
    assert saved.min() > 50
    model.set_adapter("default")
    assert torch.equal(model(X), moved)
    model.set_adapter("b")
    assert torch.equal(model.merge_and_unload()(X), base)


def test_two_full_copies_of_one_module_cannot_run_together() -> None:
    config = LoraConfig(target_modules=["first"], modules_to_save=["head"])
    model = LoraModel(Net(), config)
    model.attach("b", config)
    with pytest.raises(AdapterError, match="'default' and 'b' both have a full copy of 'head'"):
        model.set_adapter(["default", "b"])
    assert model.active_adapters == ["default"]


def test_full_copies_run_row_by_row() -> None:
    config = LoraConfig(target_modules=["first"], modules_to_save=["head"], init_lora_weights=False)
    model = LoraModel(Net(), config).eval()
    model.attach("b", config)
    with torch.no_grad():
        model.wrappers["head"].modules_to_save["default"].weight.mul_(2)
        model.wrappers["head"].modules_to_save["b"].weight.mul_(-3)
    alone = {}
    for name in ("default", "b"):
        model.set_adapter(name)
        alone[name] = model(X)
    with model.rows(["b", "__base__", "default", "b"]):
        mixed = model(X)
    expected = torch.stack([alone["b"][0], Net()(X)[1], alone["default"][2], alone["b"][3]])
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-6)


def test_modules_to_save_are_found_by_the_end_of_their_names() -> None:
    model = LoraModel(Net(), LoraConfig(target_modules=["first"], modules_to_save=["norm"]))
    assert set(model.wrappers) == {"norm", "head_norm"}
    again = LoraModel(Net(), model.peft_config["default"], "default", model.adapter("default"))
    assert set(again.wrappers) == {"norm", "head_norm"}
    assert again.peft_config["default"].modules_to_save == ["norm"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"rank_pattern": {"frist": 4}},
            "rank_pattern: 'frist' matches no adapted module. Did you mean 'first'",
        ),
        ({"alpha_pattern": {"head": 4}}, "alpha_pattern: 'head' matches no adapted module"),
        ({"exclude_modules": ["hed"]}, "exclude_modules: 'hed' matches no module. Did you mean 'head'"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern: '\\(' is not a regular expression"),
        ({"init_lora_weights": None}, "init_lora_weights is None; expected True, False or a name"),
    ],
)
def test_a_setting_without_effect_is_refused(settings: dict[str, object], line: str) -> None:
    with pytest.raises(LoralabError, match=line):
        LoraModel(Net(), LoraConfig(target_modules=["first"], **settings))


def test_a_layer_that_is_not_there_is_refused() -> None:
    net = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(2))})
    config = LoraConfig(target_modules=["0", "1"], layers_to_transform=[0, 7])
    with pytest.raises(TargetError, match=r"no module|layer 7"):
        LoraModel(nn.Sequential(net), config)


def test_a_weight_that_is_made_of_others_is_refused() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(TargetError, match="'0' is a ParametrizedLinear, which cannot be adapted"):
        LoraModel(net, LoraConfig(target_modules=["0"]))


def test_a_layer_answers_for_its_base() -> None:
    net = nn.Sequential(nn.Conv1d(4, 4, 3, stride=2), nn.Embedding(5, 4))
    LoraModel(net, LoraConfig(target_modules=["0", "1"]))
    assert net[0].stride == (2,)
    assert net[1].num_embeddings == 5
    with pytest.raises(AttributeError, match="no_such"):
        _ = net[0].no_such


def test_orthogonal_over_groups_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=4))
    with pytest.raises(TargetError, match=r"orthogonal.*'0' belong to 4 groups"):
        LoraModel(net, LoraConfig(r=8, target_modules=["0"], init_lora_weights="orthogonal"))


def test_the_embeddings_of_an_encoder_and_a_decoder_have_one_adapter() -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    torch.manual_seed(0)
    net = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    ids = torch.arange(6).view(2, 3)
    before = net(input_ids=ids, decoder_input_ids=ids).logits
    places = [name for name, _ in net.named_modules()]
    config = LoraConfig(
        r=2, target_modules=["shared"], ensure_weight_tying=True, init_lora_weights=False, lora_alpha=64
    )
    model = LoraModel(net, config)
    after = model(input_ids=ids, decoder_input_ids=ids).logits
    assert not torch.allclose(after, before, atol=1e-3)
    assert net.encoder.embed_tokens is net.shared
    model.merge_adapter()
    merged = model(input_ids=ids, decoder_input_ids=ids).logits
    torch.testing.assert_close(merged, after, rtol=1e-3, atol=1e-4)
    model.unload()
    assert [name for name, _ in net.named_modules()] == places
    torch.testing.assert_close(net(input_ids=ids, decoder_input_ids=ids).logits, before)
