"""What the installed PEFT gets wrong, one test each: it still does, and here it is right.

A test that fails at `still` says that PEFT has mended the fault: then drop the test, and the line about it in
the documentation.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from loralab import LoraConfig, PeftModel, get_peft_model
from loralab.errors import AdapterError, TargetError

from .conftest import IDS, noise, quiet

RANDOM: dict[str, Any] = {"r": 4, "lora_alpha": 6, "init_lora_weights": False}


def still(wrong: bool | Tensor, fault: str) -> None:
    """Fail once PEFT is right."""
    assert wrong, f"peft {peft.__version__} is right now where it was wrong ({fault}); drop this test"


def both(make: Callable[[], nn.Module], **settings: Any) -> tuple[Any, Any]:
    """The same model with the same adapter, in PEFT and here, in evaluation mode."""
    models: list[Any] = []
    for library in (peft, None):
        torch.manual_seed(0)
        base = make().eval()
        config = (peft.LoraConfig if library else LoraConfig)(**RANDOM | settings)
        with quiet():
            models.append((peft.get_peft_model if library else get_peft_model)(base, config))
    theirs, ours = (dict(model.named_parameters()) for model in models)
    with torch.no_grad():
        for name, parameter in ours.items():
            if parameter.requires_grad:
                parameter.copy_(theirs[name])
    return models[0].eval(), models[1].eval()


def add(model: Any, name: str, **settings: Any) -> None:
    torch.manual_seed(5)
    kind = LoraConfig if isinstance(model, PeftModel) else peft.LoraConfig
    with quiet():
        model.add_adapter(name, kind(**RANDOM | settings))


def net(**layers: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(layers))


def llama() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=32, initializer_range=0.2, tie_word_embeddings=True, **sizes)
    )


def away(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max())


def delta(model: Any, path: str, name: str = "default") -> Tensor:
    return model.base_model.model.get_submodule(path).get_delta_weight(name).detach()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x)[0]


def test_the_output_projection_of_an_attention_counts_twice() -> None:
    theirs, ours = both(Attention, target_modules=["attn"])
    x = noise(2, 3, 8)
    torch.manual_seed(0)
    once, twice = Attention().eval(), Attention().eval()
    twice.load_state_dict(once.state_dict())
    layers = ours.base_model.lora_layers
    inner, outer = (layers[path].delta("default") for path in ("attn", "attn.base_layer.out_proj"))
    with torch.no_grad():
        for made, times in ((once, 1), (twice, 2)):
            made.attn.in_proj_weight += inner
            made.attn.out_proj.weight += times * outer
    still(away(theirs(x), twice(x)) < 1e-5 < away(theirs(x), once(x)), "MultiheadAttention")
    assert away(ours(x), once(x)) < 1e-6
    assert away(ours.merge_and_unload()(x), once(x)) < 1e-6


def test_a_dilated_convolution_cannot_run() -> None:
    theirs, ours = both(lambda: net(conv=nn.Conv2d(2, 4, 3, dilation=2)), target_modules=["conv"])
    x = noise(1, 2, 7, 7)
    try:
        crashes = theirs(x) is None
    except RuntimeError:
        crashes = True
    still(crashes, "dilation is dropped")
    out = ours(x)
    assert away(ours.merge_and_unload()(x), out) < 1e-6


def test_a_convolution_forgets_how_it_pads() -> None:
    made = {"padding": 1, "padding_mode": "circular"}
    theirs, ours = both(lambda: net(conv=nn.Conv2d(2, 4, 3, **made)), target_modules=["conv"])
    x = noise(1, 2, 5, 5)
    out, wanted = ours(x), theirs(x)
    merged = theirs.merge_and_unload()(x)
    still(away(wanted, merged) > 0.05, "padding_mode is dropped")
    assert away(ours.merge_and_unload()(x), out) < 1e-6
    assert away(out, merged) < 1e-6


def test_a_flat_conv3d_cannot_be_merged() -> None:
    theirs, ours = both(lambda: net(conv=nn.Conv3d(2, 4, (1, 1, 3))), target_modules=["conv"])
    try:
        crashes = theirs.merge_and_unload() is None
    except (RuntimeError, IndexError):
        crashes = True
    still(crashes, "a (1, 1, k) kernel is taken for a pointwise Conv2d")
    x = noise(1, 2, 3, 3, 5)
    out = ours(x)
    assert away(ours.merge_and_unload()(x), out) < 1e-6


def test_a_grouped_convolution_cannot_be_merged() -> None:
    theirs, ours = both(lambda: net(conv=nn.Conv1d(4, 4, 3, groups=2)), target_modules=["conv"])
    try:
        crashes = theirs.merge_and_unload() is None
    except NotImplementedError:
        crashes = True
    still(crashes, "groups > 1")
    x = noise(2, 4, 6)
    out = ours(x)
    assert away(ours.merge_and_unload()(x), out) < 1e-6


def linear() -> nn.Module:
    return net(linear=nn.Linear(12, 8))


def test_adapters_are_added_up_with_a_wrong_scale_under_rslora() -> None:
    settings = {"target_modules": ["linear"], "use_rslora": True}
    theirs, ours = both(linear, **settings)
    wanted = 2 * delta(ours, "linear")
    for model in (theirs, ours):
        model.base_model.add_weighted_adapter(["default"], [2.0], "sum", "cat")
    still(away(delta(theirs, "linear", "sum"), wanted) > 0.5, "add_weighted_adapter with use_rslora")
    assert away(delta(ours, "linear", "sum"), wanted) < 1e-6


def test_adapters_are_added_up_without_their_magnitudes() -> None:
    theirs, ours = both(linear, target_modules=["linear"], use_dora=True)
    for model in (theirs, ours):
        layer = model.base_model.model.linear
        with torch.no_grad():
            layer.lora_magnitude_vector["default"].weight.mul_(2)
    x = noise(3, 12)
    before = theirs(x)
    with quiet():
        theirs.base_model.add_weighted_adapter(["default"], [1.0], "sum", "cat")
    theirs.set_adapter("sum")
    still(away(theirs(x), before) > 0.05, "add_weighted_adapter with use_dora")
    with pytest.raises(AdapterError, match="'default' is a dora adapter"):
        ours.add_weighted_adapter(["default"], [1.0], "sum", "cat")


@pytest.mark.parametrize("kind", ["linear", "ties", "dare_linear"])
def test_adapters_are_mixed_factor_by_factor(kind: str) -> None:
    theirs, ours = both(linear, target_modules=["linear"])
    for model in (theirs, ours):
        add(model, "other", target_modules=["linear"])
    wanted = 0.5 * delta(ours, "linear") + 0.5 * delta(ours, "linear", "other")
    density = {} if kind == "linear" else {"density": 1.0}
    with quiet():
        theirs.add_weighted_adapter(["default", "other"], [0.5, 0.5], "sum", kind, **density)
    ours.add_weighted_adapter(["default", "other"], [0.5, 0.5], "sum", "exact")
    still(away(delta(theirs, "linear", "sum"), wanted) > 0.2, f"{kind!r} has cross terms")
    assert away(delta(ours, "linear", "sum"), wanted) < 1e-5


def bf16() -> nn.Module:
    return net(linear=nn.Linear(96, 96, bias=False)).bfloat16()


def test_a_safe_merge_rounds_twice() -> None:
    theirs, ours = both(bf16, target_modules=["linear"])
    layer = ours.base_model.lora_layers["linear"]
    exact = (layer.dense_weight().double() + layer.delta("default").double()).bfloat16()
    theirs.merge_adapter(safe_merge=True)
    ours.merge_adapter(safe_merge=True)
    wrong = (theirs.base_model.model.linear.base_layer.weight != exact).double().mean()
    still(wrong > 0.005, "safe_merge rounds the delta before it is added")
    assert (layer.base_layer.weight != exact).double().mean() < 1e-4


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float32], ids=str)
def test_unmerging_does_not_undo_merging(low: torch.dtype) -> None:
    theirs, ours = both(lambda: bf16().to(low), target_modules=["linear"])
    changed = []
    for model in (theirs, ours):
        weight = model.base_model.model.linear.base_layer.weight
        before = weight.detach().clone()
        model.merge_adapter()
        model.unmerge_adapter()
        after = model.base_model.model.linear.base_layer.weight
        changed.append(float((after != before).double().mean()))
    still(changed[0] > 0.01, "unmerge subtracts what rounding has changed")
    assert changed[1] == 0


def test_merging_one_of_two_active_adapters_drops_the_other() -> None:
    theirs, ours = both(linear, target_modules=["linear"])
    x = noise(3, 12)
    outs = []
    for model in (theirs, ours):
        add(model, "other", target_modules=["linear"])
        model.base_model.set_adapter(["default", "other"])
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if ".other." in name:
                parameter.copy_(dict(theirs.named_parameters())[name])
    for model in (theirs, ours):
        before = model(x)
        model.base_model.merge_adapter(["default"])
        outs.append(away(model(x), before))
    still(outs[0] > 0.05, "a merged layer runs no other adapter")
    assert outs[1] < 1e-6


def test_disabling_a_merged_adapter_unmerges_it_for_good() -> None:
    theirs, ours = both(linear, target_modules=["linear"])
    x = noise(3, 12)
    torch.manual_seed(0)
    base = linear()(x)
    for model in (theirs, ours):
        model.merge_adapter()
        with quiet(), model.disable_adapter():
            assert away(model(x), base) < 1e-6
    still(not theirs.base_model.model.linear.merged, "forward unmerges")
    assert ours.base_model.model.linear.merged


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal"])
def test_an_embedding_passes_an_initialisation_over(init: str) -> None:
    models: list[Any] = []
    for make, config in ((peft.get_peft_model, peft.LoraConfig), (get_peft_model, LoraConfig)):
        torch.manual_seed(0)
        base = net(embed=nn.Embedding(12, 8))
        original = base.embed.weight.detach().clone()
        models.append(make(base, config(r=4, target_modules=["embed"], init_lora_weights=init)))
    a = models[0].base_model.model.embed.lora_embedding_A["default"]
    still(not a.any(), f"an embedding ignores {init!r}")
    layer = models[1].base_model.lora_layers["embed"]
    assert layer.factors("default")[0].any()
    if init != "orthogonal":
        assert delta(models[1], "embed").norm() > 0.1
        assert not torch.equal(layer.original_weight, original)
    assert away(layer.original_weight + delta(models[1], "embed"), original) < 1e-5


@pytest.mark.parametrize("layer", [nn.Embedding(12, 8), nn.Conv1d(4, 8, 3)], ids=["embedding", "convolution"])
def test_loftq_is_called_without_its_settings(layer: nn.Module) -> None:
    pytest.importorskip("scipy", reason="PEFT's LoftQ needs scipy")
    loftq = {"target_modules": ["layer"], "init_lora_weights": "loftq", "r": 2}
    bits = {"loftq_bits": 4, "loftq_iter": 1}
    try:
        with quiet():
            made = peft.get_peft_model(
                net(layer=layer), peft.LoraConfig(**loftq, loftq_config=peft.LoftQConfig(**bits))
            )
        fails = made is None
    except TypeError:
        fails = True
    still(fails, "loftq on an embedding or a convolution")
    ours = get_peft_model(net(layer=layer), LoraConfig(**loftq, loftq_config=bits))
    assert delta(ours, "layer").norm() > 0


def test_a_tied_adapter_steps_twice() -> None:
    settings = {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    theirs, ours = both(llama, **settings)
    key = "base_model.model.model.embed_tokens.lora_embedding_B.default"
    moved = []
    for model in (theirs, ours):
        trained = [p for p in model.parameters() if p.requires_grad]
        b = dict(model.named_parameters())[key]
        before = b.detach().clone()
        model(input_ids=IDS).logits.square().mean().backward()
        grads = b.grad.clone()
        torch.optim.SGD(trained, lr=0.1).step()
        moved.append(away(before - b.detach(), 0.1 * grads))
        numbers = len(trained)
    still(moved[0] > 0.05, "ensure_weight_tying gives the head parameters of its own in the same memory")
    assert moved[1] < 1e-4
    assert numbers == 2


def test_all_copies_of_a_replicated_layer_are_merged_into_one_weight() -> None:
    settings = {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]]}
    theirs, ours = both(llama, **settings)
    apart = []
    for model in (theirs, ours):
        out = model(input_ids=IDS).logits
        apart.append(away(model.merge_and_unload()(input_ids=IDS).logits, out))
    still(apart[0] > 0.01, "layer_replication")
    assert apart[1] < 1e-5


def test_a_misspelt_target_is_passed_over() -> None:
    def make() -> nn.Module:
        return net(first=nn.Linear(4, 4), second=nn.Linear(4, 4))

    settings = {"target_modules": ["first", "secund"]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peft.get_peft_model(make(), peft.LoraConfig(**settings))
    still(not any("secund" in str(warning.message) for warning in caught), "an entry that matches nothing")
    with pytest.raises(
        TargetError, match=r"'secund' matches no module of this model\. Did you mean 'second'"
    ):
        get_peft_model(make(), LoraConfig(**settings))


def test_tensors_without_a_place_are_passed_over(tmp_path: Path) -> None:
    theirs, _ = both(linear, target_modules=["linear"])
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.other.lora_A.weight": torch.ones(4, 12)}, file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peft.PeftModel.from_pretrained(linear(), tmp_path)
    still(not any("other" in str(warning.message) for warning in caught), "unexpected keys")
    with pytest.raises(AdapterError, match=r"other\.lora_A\.weight has no place in the model"):
        PeftModel.from_pretrained(linear(), tmp_path)


def test_keys_without_a_prefix_leave_the_adapter_at_its_start(tmp_path: Path) -> None:
    theirs, ours = both(linear, target_modules=["linear"])
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    bare = {key.removeprefix("base_model.model."): value for key, value in load_file(file).items()}
    save_file(bare, file)
    with quiet():
        loaded = peft.PeftModel.from_pretrained(linear(), tmp_path)
    still(away(delta(loaded, "linear"), delta(theirs, "linear")) > 0.05, "such a file is not loaded")
    assert torch.equal(delta(PeftModel.from_pretrained(linear(), tmp_path), "linear"), delta(ours, "linear"))
