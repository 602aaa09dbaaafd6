"""Adapters over `torch.nn.MultiheadAttention` and torch's own encoder layers."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralab.core.model import LoraModel
from loralab.errors import AdapterError, TargetError

from .models import close, config

MASK = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
PADDED = torch.tensor([[False, False, False, True, True], [False] * 5])


class Attention(nn.Module):
    """An attention of four heads at the path "attn"."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(16, 4, **settings)
        for name, parameter in self.attn.named_parameters():
            if "bias" in name:
                nn.init.normal_(parameter)

    def forward(self, *args: Tensor, **kwargs: Any) -> Any:
        return self.attn(*args, **kwargs)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def qkv() -> tuple[Tensor, Tensor, Tensor]:
    return noise(2, 5, 16), noise(2, 5, 16, seed=2), noise(2, 5, 16, seed=3)


def adapted(*targets: str, **settings: Any) -> LoraModel:
    return LoraModel(Attention(**settings), config(*(targets or ("attn",)))).eval()


def plain(model: LoraModel) -> nn.Module:
    """A copy without adapters whose weights have the deltas in them, each once."""
    layers = {path: layer.delta("default") for path, layer in model.lora_layers.items()}
    made = copy.deepcopy(model).unload()
    with torch.no_grad():
        for path, delta in layers.items():
            holder = made.attn.out_proj if "out_proj" in path else made.attn
            getattr(holder, "in_proj_weight" if holder is made.attn else "weight").add_(delta)
    return made


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    "calls",
    [
        {},
        {"need_weights": False},
        {"attn_mask": MASK},
        {"attn_mask": MASK, "is_causal": True, "need_weights": False},
        {"key_padding_mask": PADDED},
        {"average_attn_weights": False},
    ],
    ids=lambda calls: "-".join(calls) or "plain",
)
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_first": True},
        {},
        {"batch_first": True, "bias": False},
        {"add_bias_kv": True, "add_zero_attn": True},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_both_projections_count_once(
    settings: dict[str, Any], calls: dict[str, Any], gradients: bool
) -> None:
    model = adapted(**settings)
    inputs = qkv() if settings.get("batch_first") else tuple(x.transpose(0, 1) for x in qkv())
    if "attn_mask" in calls and "add_bias_kv" in settings:
        calls = {**calls, "is_causal": False}
    with torch.set_grad_enabled(gradients):
        (out, weights), (wanted, wanted_weights) = model(*inputs, **calls), plain(model)(*inputs, **calls)
        same_in = model(inputs[0], inputs[0], inputs[0], **calls)[0]
        same_in_wanted = plain(model)(inputs[0], inputs[0], inputs[0], **calls)[0]
    close(out, wanted)
    close(same_in, same_in_wanted)
    assert (weights is None) == (wanted_weights is None)
    if weights is not None:
        close(weights, wanted_weights)
    model.disable_adapter_layers()
    assert (model(*inputs, **calls)[0] - out).abs().max() > 0.05


def test_the_output_projection_alone() -> None:
    model = adapted("out_proj")
    assert list(model.adapter("default").tensors) == [
        "attn.out_proj.lora_A.weight",
        "attn.out_proj.lora_B.weight",
    ]
    out = model(*qkv())[0]
    close(out, plain(model)(*qkv())[0])
    out.sum().backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)
    model.merge_adapter()
    close(model(*qkv())[0], out)


def test_files_name_the_projections_as_peft_does() -> None:
    tensors = adapted().adapter("default").tensors
    assert {key: list(tensor.shape) for key, tensor in tensors.items()} == {
        "attn.lora_A.weight": [4, 16],
        "attn.lora_B.weight": [48, 4],
        "attn.base_layer.out_proj.lora_A.weight": [4, 16],
        "attn.base_layer.out_proj.lora_B.weight": [16, 4],
    }
    assert adapted("attn", "out_proj").adapter("default").tensors.keys() == tensors.keys()


def test_gradients_are_those_of_finite_differences() -> None:
    model = adapted(batch_first=True).double()
    inputs = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(inputs) == 4
    x = noise(1, 3, 16).double()
    assert torch.autograd.gradcheck(lambda *_: model(x, x, x)[0], inputs)


def test_merging_and_unloading_give_every_bit_back(dtype: torch.dtype) -> None:
    net = Attention(batch_first=True).to(dtype)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    attn, out_proj, parameters = net.attn, net.attn.out_proj, list(net.attn.parameters())
    model = LoraModel(net, config("attn"))
    model.merge_adapter()
    assert not torch.equal(net.attn.holder.in_proj_weight, before["attn.in_proj_weight"])
    model.unmerge_adapter()
    model.merge_adapter()
    assert model.unload() is net
    assert net.attn is attn
    assert net.attn.out_proj is out_proj
    assert all(one is other for one, other in zip(net.attn.parameters(), parameters, strict=True))
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_sum_kept_in_fp32_runs_in_a_bf16_model() -> None:
    model = LoraModel(Attention(batch_first=True).bfloat16(), config("attn"))
    inputs = [x.bfloat16() for x in qkv()]
    out = model(*inputs)[0]
    model.merge_adapter(rounding="float32")
    assert model.lora_layers["attn"].holder.in_proj_weight.dtype == torch.float32
    close(model(*inputs)[0].float(), out.float(), 0.02)
    whole = copy.deepcopy(model).merge_and_unload(rounding="float32")
    close(whole(*qkv())[0], out.float(), 0.05)
    model.unmerge_adapter()
    assert torch.equal(model(*inputs)[0], out)


def test_copies_and_pickles_run_alike() -> None:
    model = adapted()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        close(other(*qkv())[0], model(*qkv())[0], 0)
        assert other.lora_layers["attn"].base_layer.out_proj is other.lora_layers["attn.base_layer.out_proj"]


def test_models_read_sizes_and_weights_off_the_attention() -> None:
    model = adapted(batch_first=True)
    attn = model.model.attn
    assert (attn.embed_dim, attn.num_heads, attn.batch_first, attn.in_proj_bias.shape) == (16, 4, True, (48,))
    close(attn.in_proj_weight, attn.holder.in_proj_weight + attn.delta("default"))
    close(attn.out_proj.weight, attn.out_proj.original_weight + attn.out_proj.delta("default"))


def test_separate_widths_are_refused_and_taken_as_parameters() -> None:
    settings = {"kdim": 8, "vdim": 6, "batch_first": True}
    names = ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    with pytest.raises(TargetError, match=r"target_parameters=\['q_proj_weight', 'k_proj_weight', 'v_"):
        LoraModel(Attention(**settings), config("attn"))
    model = LoraModel(Attention(**settings), config(target_parameters=names)).eval()
    x = noise(2, 5, 16)
    out = model(x, x[..., :8], x[..., :6])[0]
    made = Attention(**settings).eval()
    with torch.no_grad():
        for layer in model.lora_layers.values():
            getattr(made.attn, layer.weight_name).add_(layer.delta("default"))
    close(out, made(x, x[..., :8], x[..., :6])[0])
    model.merge_adapter()
    with torch.no_grad():
        close(model(x, x[..., :8], x[..., :6])[0], out)


def test_dropout_that_does_not_reach_the_weights_is_said() -> None:
    with pytest.warns(UserWarning, match="lora_dropout=0.1 does not reach 'attn'"):
        model = LoraModel(Attention(), config("attn", lora_dropout=0.1, init_lora_weights=False))
    x = torch.randn(2, 5, 16)
    close(model.train()(x, x, x)[0], model.eval()(x, x, x)[0])


@pytest.mark.parametrize("setting", [{"lora_bias": True}, {"use_dora": True}])
def test_what_has_no_meaning_for_a_weight_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(TargetError, match=f"{next(iter(setting))}=.* has no meaning for 'attn'"):
        LoraModel(Attention(), config("attn", **setting))


def test_one_weight_has_one_layer() -> None:
    whole, part, parameter = config("attn"), config("out_proj"), config(target_parameters=["out_proj.weight"])
    for first, second in [(whole, part), (part, whole), (whole, parameter), (parameter, whole)]:
        model = LoraModel(Attention(), first, "first")
        before = list(model.lora_layers)
        with pytest.raises(TargetError, match=r"by another adapter|another adapter has"):
            model.attach("second", second)
        assert list(model.lora_layers) == before
    with pytest.raises(TargetError, match=r"'attn\.out_proj' is in target_modules and has target_parameters"):
        LoraModel(Attention(), config("attn", target_parameters=["out_proj.weight"]))


def test_rows_of_a_batch_share_the_projections() -> None:
    model = adapted(batch_first=True)
    with (
        pytest.raises(AdapterError, match=r"'default' changes the .* of 'attn', which all rows"),
        model.rows(["default", "__base__"]),
    ):
        model(*qkv())


def test_the_output_projection_may_be_trained_in_full() -> None:
    model = LoraModel(Attention(batch_first=True), config(modules_to_save=["out_proj"]))
    model(*qkv())[0].sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {f"model.attn.out_proj.modules_to_save.default.{key}" for key in ("weight", "bias")}


class Encoder(nn.Module):
    """Torch's own encoder, which in evaluation would read weights and call no module."""

    def __init__(self, activation: str = "gelu", norm_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(
            16, 4, 24, 0.0, activation, batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padded)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("padded", [None, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "targets", [["self_attn"], ["linear1"], ["linear2"], ["out_proj"], ["self_attn", "linear1"]]
)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_no_fast_path_passes_an_adapter_by(
    activation: str, targets: list[str], padded: Tensor | None
) -> None:
    net = Encoder(activation).eval()
    x = noise(2, 5, 16)
    real = torch.ones(2, 5, dtype=torch.bool) if padded is None else ~padded
    with torch.no_grad():
        before = net(x, padded)
    model = LoraModel(net, config(*targets)).eval()
    trained = model(x, padded)
    with torch.no_grad():
        out = model(x, padded)
        close(out[real], trained[real])
        assert (out - before)[real].abs().max() > 0.05
        model.merge_adapter()
        close(model(x, padded)[real], out[real])
        model.disable_adapter_layers()
        close(model(x, padded)[real], before[real])
        fast = model.unload()
        assert torch.equal(fast(x, padded), before)
    assert all(layer.activation_relu_or_gelu for layer in fast.encoder.layers)
    assert fast.encoder.use_nested_tensor


@pytest.mark.parametrize("name", ["self_attn", "linear1", "norm1"])
def test_no_fast_path_passes_a_module_trained_in_full_by(name: str) -> None:
    model = LoraModel(Encoder().eval(), config(modules_to_save=[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    x = noise(2, 5, 16)
    wanted = model(x)
    with torch.no_grad():
        close(model(x), wanted)


def test_parameters_of_an_encoder_layer() -> None:
    model = LoraModel(Encoder().eval(), config(target_parameters=["in_proj_weight", "linear1.weight"])).eval()
    x = noise(2, 5, 16)
    wanted = model(x)
    with torch.no_grad():
        close(model(x), wanted)
    close(copy.deepcopy(model).merge_and_unload()(x), wanted)
