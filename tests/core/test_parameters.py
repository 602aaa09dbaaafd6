"""`target_parameters`: stacks of experts, and matrices that are no layer's own."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralab.core.adapter import Adapter
from loralab.core.model import LoraModel
from loralab.errors import AdapterError, TargetError

from .conftest import Experts, Matrix
from .models import close, config, logits, mixtral, small, twin

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


class Net(nn.Module):
    """A stack of experts, a matrix, and a linear layer."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = Experts(transposed)
        self.matrix = Matrix()
        self.linear = nn.Linear(5, 10)
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.ones(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix(self.linear(self.experts(self.norm(x)))) @ self.scale


def x(rows: int = 4) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


def adapted(*parameters: str, transposed: bool = False, **settings: Any) -> LoraModel:
    return LoraModel(Net(transposed), config(target_parameters=list(parameters), **settings)).eval()


def expert_deltas(a: Tensor, b: Tensor, scaling: float, experts: int = 3) -> list[Tensor]:
    """What PEFT's layout means: A is [E R, I], B is [O, R E] with the experts fastest."""
    rank = a.shape[0] // experts
    rows = [a[e * rank : (e + 1) * rank] for e in range(experts)]
    return [scaling * b[:, e::experts] @ rows[e] for e in range(experts)]


@pytest.mark.parametrize("transposed", [False, True])
def test_every_expert_has_a_delta_of_its_own(transposed: bool) -> None:
    model = adapted("up", "down", transposed=transposed, lora_alpha=6).double()
    base = Net(transposed).double()
    for place, name in {"experts.base_layer": "up", "experts": "down"}.items():
        tensors = model.adapter("default").tensors
        a, b = tensors[f"{place}.lora_A.weight"], tensors[f"{place}.lora_B.weight"]
        with torch.no_grad():
            for e, delta in enumerate(expert_deltas(a, b, 6 / 4)):
                getattr(base.experts, name)[e] += delta.t() if transposed else delta
    close(model(x().double()), base(x().double()), 1e-12)


def test_a_plain_matrix() -> None:
    model, base = adapted("table", lora_alpha=6).double(), Net().double()
    tensors = model.adapter("default").tensors
    assert {key: list(t.shape) for key, t in tensors.items()} == {
        "matrix.lora_A.weight": [4, 10],
        "matrix.lora_B.weight": [6, 4],
    }
    with torch.no_grad():
        base.matrix.table += 1.5 * tensors["matrix.lora_B.weight"] @ tensors["matrix.lora_A.weight"]
    close(model(x().double()), base(x().double()), 1e-12)


@pytest.mark.parametrize("order", [["up", "down"], ["down", "up"]])
def test_the_first_registered_parameter_is_innermost_in_files(order: list[str]) -> None:
    tensors = adapted(*order).adapter("default").tensors
    assert {key: list(t.shape) for key, t in tensors.items()} == {
        "experts.base_layer.lora_A.weight": [12, 6],
        "experts.base_layer.lora_B.weight": [8, 12],
        "experts.lora_A.weight": [12, 8],
        "experts.lora_B.weight": [5, 12],
    }


def test_ranks_and_alphas_by_parameter() -> None:
    model = adapted("up", "down", rank_pattern={"experts.up": 2}, alpha_pattern={"down": 12})
    layers = model.lora_layers.values()
    found = {layer.path: (layer.r["default"], layer.scaling["default"]) for layer in layers}
    assert found == {"experts.up": (2, 4.0), "experts.down": (4, 3.0)}


def test_adapters_at_once_add_up_and_keep_apart() -> None:
    model = adapted("up", "down", "table")
    torch.manual_seed(5)
    model.attach("other", config(target_parameters=["up", "down", "table"], r=2))
    layers = model.lora_layers.values()
    alone = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        alone[name] = model(x())
        assert {n for n, p in model.named_parameters() if p.requires_grad} == {
            n for n, _ in model.named_parameters() if f".{name}." in n
        }
    model.set_adapter(["default", "other"])
    both = model(x())
    for layer in layers:
        with torch.no_grad():
            layer.original_weight.add_(layer.delta("default"))
    model.set_adapter("other")
    close(model(x()), both)
    assert (alone["default"] - alone["other"]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("parameters", "settings", "fault"),
    [
        (["up"], {"lora_dropout": 0.1}, "lora_dropout=0.1 has no meaning for 'experts.up'"),
        (["up"], {"lora_bias": True}, "lora_bias=True has no meaning for 'experts.up'"),
        (["up"], {"use_dora": True}, "use_dora=True has no meaning for 'experts.up'"),
        (["up"], {"init_lora_weights": "pissa"}, "'pissa' splits a matrix, and 'experts.up' is a stack"),
        (["down"], {"init_lora_weights": "olora"}, "'olora' splits a matrix, and 'experts.down' is a stack"),
        (["tabel"], {}, "'tabel' matches no parameter of this model. Did you mean 'table'"),
        (["up", "experts.dwn"], {}, "'experts.dwn' matches no parameter.*Did you mean 'down'"),
        (["scale"], {}, "'scale' is a parameter of the whole model"),
        (["norm.weight"], {}, r"'weight' is \[6\]; expected a matrix or a stack"),
        (["linear.weight"], {"target_modules": ["linear"]}, "'linear' is in target_modules and has"),
    ],
)
def test_what_is_refused(parameters: list[str], settings: dict[str, Any], fault: str) -> None:
    net = Net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(TargetError, match=fault) as caught:
        LoraModel(net, config(target_parameters=parameters, **settings))
    assert "\n" not in str(caught.value)
    assert [type(module) for module in net.modules()] == [type(module) for module in Net().modules()]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_second_adapter_adapts_the_same_parameters_of_a_module() -> None:
    model = adapted("up")
    for others in (["down"], ["up", "down"]):
        with pytest.raises(TargetError, match=r"one model adapt the same parameters .* has up of"):
            model.attach("other", config(target_parameters=others))
    with pytest.raises(TargetError, match="'matrix' has target_parameters of another adapter"):
        adapted("table").attach("other", config("matrix"))
    model.attach("other", config(target_parameters=["up"]))
    assert list(model.peft_config) == ["default", "other"]


def test_rows_of_a_batch_share_a_parameter() -> None:
    model = adapted("up")
    model.attach("other", config("linear"))
    with pytest.raises(AdapterError, match=r"'default' changes the parameter of 'experts\.up', which all"):
        with_rows(model, ["default", "__base__", "other", "other"])
    base, out = twin(Net())(x()), with_rows(model, ["__base__", "__base__", "other", "other"])
    close(out[:2], base[:2])
    assert (out[2:] - base[2:]).abs().max() > 0.01


def with_rows(model: LoraModel, names: list[str]) -> Tensor:
    with model.rows(names):
        return model(x())


class Square(Experts):
    """Experts of as many inputs as outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(3, 8, 8))


def old_file(experts: nn.Module, name: str, version: str | None) -> tuple[Adapter, list[Tensor]]:
    """An adapter as PEFT 0.17 wrote it over [E, O, I], which it took for [E, I, O]; and its deltas."""
    _, rows, columns = getattr(experts, name).shape
    a, b = torch.randn(3 * 4, rows), torch.randn(columns, 4 * 3)
    tensors = {"0.lora_A.weight": a, "0.lora_B.weight": b}
    made = config(target_parameters=[f"0.{name}"], peft_version=version)
    return Adapter(made, tensors), [delta.t() for delta in expert_deltas(a, b, made.scaling_of("0"))]


@pytest.mark.parametrize("version", [None, "0.17.0", "0.18.1", "0.21.2"])
def test_an_older_layout_is_known_by_its_shapes(version: str | None) -> None:
    experts = Experts()
    adapter, deltas = old_file(experts, "up", version)
    model = LoraModel(nn.Sequential(experts), adapter.config, "default", adapter)
    for found, wanted in zip(model.lora_layers["0"].delta("default"), deltas, strict=True):
        close(found, wanted)


@pytest.mark.parametrize(
    ("version", "old"), [("0.17.0", True), ("0.18.1", True), ("0.19.0", False), (None, False)]
)
def test_square_experts_go_by_the_release_that_wrote_the_file(version: str | None, old: bool) -> None:
    experts = Square()
    adapter, deltas = old_file(experts, "down", version)
    if not old:
        a, b = adapter.tensors.values()
        deltas = expert_deltas(a, b, adapter.config.scaling_of("0"))
    model = LoraModel(nn.Sequential(experts), adapter.config, "default", adapter)
    for found, wanted in zip(model.lora_layers["0"].delta("default"), deltas, strict=True):
        close(found, wanted)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_those_of_finite_differences(transposed: bool) -> None:
    model = adapted("up", "down", "table", transposed=transposed, r=2).double()
    model.attach("other", config(target_parameters=["up", "down", "table"], r=1))
    model.set_adapter(["default", "other"])
    inputs = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(inputs) == 12
    assert torch.autograd.gradcheck(lambda *_: model(x(2).double()), inputs)


@pytest.mark.parametrize("transposed", [False, True])
def test_what_other_modules_read_is_what_runs(transposed: bool) -> None:
    model = adapted("up", "down", transposed=transposed)
    outer, inner = model.lora_layers["experts"], model.lora_layers["experts.base_layer"]
    for name, layer in {"up": inner, "down": outer}.items():
        close(getattr(model.model.experts, name), layer.original_weight + layer.delta("default"))
    assert model.model.experts.is_transposed is transposed
    model.disable_adapter_layers()
    assert model.model.experts.up is inner.original_weight


class Reader(nn.Module):
    """A module whose weight and bias another module reads, as attention does with its output projection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 6)
        self.linear.other = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.linear.weight, self.linear.bias)


def test_a_weight_that_another_module_reads_is_adapted_too() -> None:
    model, base = LoraModel(Reader(), config(target_parameters=["linear.weight"])), Reader()
    out = model(x())
    with torch.no_grad():
        base.linear.weight += model.lora_layers["linear"].delta("default")
    close(out, base(x()))
    model.merge_adapter()
    close(model(x()), out)


def test_a_weight_beside_the_adapted_parameter_is_left_alone() -> None:
    model = LoraModel(Reader(), config(target_parameters=["linear.other"]))
    assert torch.equal(model(x()), twin(Reader())(x()))
    assert model.model.linear.weight.shape == (6, 6)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_mixtral_computes_with_its_experts_merged(experts: str) -> None:
    model = LoraModel(mixtral(experts), config("q_proj", target_parameters=[*EXPERTS, "gate.weight"]))
    small(model)
    plain = copy.deepcopy(model).merge_and_unload()
    out = logits(model)
    close(out, logits(plain), 1e-5)
    assert (out - logits(mixtral(experts))).abs().max() > 0.1
    out.square().sum().backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * (2 * 4)
    assert all(grad.isfinite().all() and grad.any() for grad in trained.values())


def test_the_ways_of_running_experts_agree() -> None:
    results = []
    for experts in ("eager", "grouped_mm", "batched_mm"):
        model = LoraModel(mixtral(experts), config(target_parameters=EXPERTS))
        small(model)
        logits(model).square().sum().backward()
        results.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for other in results[1:]:
        for name, grad in results[0].items():
            close(other[name] / grad.abs().max(), grad / grad.abs().max(), 1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    grads = []
    for checkpointing in (False, True):
        base = mixtral()
        base.config.use_cache = False
        model = LoraModel(base, config(target_parameters=EXPERTS))
        small(model)
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": reentrant})
            base.enable_input_require_grads()
        logits(model.train()).square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_under_autocast(experts: str) -> None:
    model = LoraModel(mixtral(experts), config(target_parameters=EXPERTS))
    small(model)
    exact = logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        out = logits(model)
    out.float().sum().backward()
    close(out.float(), exact, 0.05)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_a_sum_kept_in_fp32_runs_in_a_bf16_model(experts: str) -> None:
    model = LoraModel(mixtral(experts).bfloat16(), config(target_parameters=EXPERTS))
    small(model)
    out = logits(model)
    report = model.merge_adapter(rounding="float32")
    assert report.error < 1e-6
    close(logits(model).float(), out.float(), 0.02)
    layer = model.lora_layers["model.layers.0.mlp.experts"]
    assert layer.holder.down_proj.dtype == torch.float32
    model.unmerge_adapter()
    assert layer.holder.down_proj.dtype == torch.bfloat16


def test_orthogonal_factors_of_a_stack() -> None:
    model = adapted("up", init_lora_weights="orthogonal", r=2)
    a, b = (factor.detach() for factor in model.lora_layers["experts"].factors("default"))
    assert a.shape == (6, 6)
    assert torch.isfinite(a).all()
    assert torch.isfinite(b).all()
