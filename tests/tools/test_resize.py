"""Resizing: the best delta of each rank, found without building any."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from loralab.adapters import PeftModel, get_peft_model, read_adapter, write_adapter
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.errors import AdapterError, ConfigError
from loralab.models import load_base
from loralab.tools.resize import resize

MakeAdapter = Callable[..., Adapter]


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"rank_pattern": {"v_proj": 2}, "lora_alpha": 3}]
)
@pytest.mark.parametrize("r", [1, 2, 3])
def test_each_delta_is_the_best_of_its_rank(
    make_adapter: MakeAdapter, settings: dict[str, Any], r: int
) -> None:
    adapter = make_adapter(**settings)
    resized = resize(adapter, r=r)
    for layer in resized.layers:
        before, after = (a.modules()[layer.module] for a in (adapter, resized.adapter))
        s = torch.linalg.svdvals(before.product().double())
        assert after.scaling == 1
        assert after.rank == layer.rank == min(r, before.rank)
        lost = float((before.product() - after.product()).norm() / s.norm())
        assert lost == pytest.approx(float(s[after.rank :].norm() / s.norm()), abs=1e-6)
        assert layer.error == pytest.approx(lost, abs=1e-6)
        assert layer.energy == pytest.approx(1 - lost**2, abs=1e-6)


def test_at_its_own_rank_nothing_changes(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    resized = resize(adapter, r=100).adapter
    assert resized.config.r == resized.config.lora_alpha == 4
    for path, factors in adapter.modules().items():
        torch.testing.assert_close(resized.modules()[path].product(), factors.product(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("energy", [0.3, 0.8, 0.99, 1.0])
def test_an_energy_is_kept_by_every_module_and_no_rank_is_wasted(
    make_adapter: MakeAdapter, energy: float
) -> None:
    adapter = make_adapter()
    for layer in resize(adapter, energy=energy).layers:
        s2 = torch.linalg.svdvals(adapter.modules()[layer.module].product().double()).square()
        assert layer.energy >= energy - 1e-9
        assert float(s2[: layer.rank - 1].sum() / s2.sum()) < energy


def test_an_error_is_not_passed(make_adapter: MakeAdapter) -> None:
    assert all(layer.error <= 0.4 for layer in resize(make_adapter(), error=0.4).layers)


def test_a_budget_goes_to_the_largest_singular_values_per_byte(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    strong = adapter.tensors["layers.1.q_proj.lora_B.weight"]
    adapter = Adapter(adapter.config, {**adapter.tensors, "layers.1.q_proj.lora_B.weight": strong * 100})
    for ranks in range(1, 9):
        budget = 22 * 4 * ranks
        resized = resize(adapter, max_bytes=budget)
        assert sum(t.nbytes for t in resized.adapter.tensors.values()) == resized.bytes <= budget
        by_module = {layer.module: layer.rank for layer in resized.layers}
        assert by_module["layers.1.q_proj"] == min(ranks, 4)
    prices = {path: sum(f.product().shape) * 4 for path, f in adapter.modules().items()}
    offers = [
        (float(s) ** 2 / prices[path], path)
        for path, f in adapter.modules().items()
        for s in torch.linalg.svdvals(f.product().double())[:4]
    ]
    best = [path for _, path in sorted(offers, reverse=True)[:7]]
    spent = resize(adapter, max_bytes=sum(prices[path] for path in best))
    assert {layer.module: layer.rank for layer in spent.layers} == {path: best.count(path) for path in prices}


def test_a_module_without_a_rank_is_left_out_and_no_longer_targeted(make_adapter: MakeAdapter) -> None:
    resized = resize(make_adapter(), max_bytes=22 * 4)
    kept = [layer.module for layer in resized.layers if layer.rank]
    assert len(kept) == 1
    assert resized.adapter.config.target_modules == set(kept)
    assert set(resized.adapter.modules()) == set(kept)
    left = next(layer for layer in resized.layers if not layer.rank)
    assert (left.energy, left.error, left.bytes) == (0, 1, 0)


def test_a_budget_counts_what_is_no_factor(make_adapter: MakeAdapter) -> None:
    rest = {"head.weight": torch.ones(3, 10)}
    adapter = make_adapter(rest=rest, modules_to_save=["head"])
    resized = resize(adapter, max_bytes=120 + 22 * 4)
    assert torch.equal(resized.adapter.tensors["head.weight"], rest["head.weight"])
    assert resized.bytes <= 120 + 22 * 4
    with pytest.raises(ConfigError, match=r"leaves 0 bytes for factors; one rank of .*v_proj', takes 64"):
        resize(adapter, max_bytes=100)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_values_keep_their_dtype(make_adapter: MakeAdapter, half: torch.dtype) -> None:
    resized = resize(make_adapter(dtype=half), r=2)
    assert {t.dtype for t in resized.adapter.tensors.values()} == {half}
    assert resized.bytes == resized.bytes_before // 2


class Net(nn.Module):
    """One layer of each kind that has its own way to lie in a file."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(self.embed(ids)[:, None]).mean((2, 3)))


def test_every_kind_of_layer_computes_the_same_afterwards(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = Net()
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["embed", "conv", "head"], init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    ids = torch.arange(12).view(2, 6)
    expected = model(ids)
    model.save_pretrained(tmp_path / "a")
    base = model.unload()
    write_adapter(resize(read_adapter(tmp_path / "a"), energy=1.0).adapter, tmp_path / "b")
    again = PeftModel.from_pretrained(base, tmp_path / "b")
    torch.testing.assert_close(again(ids), expected, atol=1e-5, rtol=1e-5)


def test_of_dora_the_magnitude_is_kept_and_ba_resized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {"target_modules": ["embed", "conv", "head"], "init_lora_weights": False}
    model = get_peft_model(Net(), LoraConfig(r=3, lora_alpha=5, use_dora=True, **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.3)
    ids = torch.arange(12).view(2, 6)
    expected = model(ids)
    adapter = model.base_model.adapter("default")
    adapter = Adapter(adapter.config, {key: tensor.detach() for key, tensor in adapter.tensors.items()})
    base = model.unload()
    whole, half = resize(adapter, r=3), resize(adapter, r=1)
    again = PeftModel(base, whole.adapter.config, adapter=whole.adapter).eval()
    torch.testing.assert_close(again(ids), expected, atol=1e-5, rtol=1e-5)
    for layer in half.layers:
        key = f"{layer.module}.lora_magnitude_vector"
        assert torch.equal(half.adapter.tensors[key], adapter.tensors[key])
        before, after = (a.modules()[layer.module].product() for a in (adapter, half.adapter))
        assert layer.error == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)
    kept = sum(t.nbytes for k, t in adapter.tensors.items() if "magnitude" in k)
    with pytest.raises(
        ConfigError, match="leaves no rank for 'embed', whose lora_magnitude_vector needs one"
    ):
        resize(adapter, max_bytes=kept + 15 * 4)


def test_different_ranks_load_in_peft(tmp_path: Path, make_adapter: MakeAdapter) -> None:
    peft = pytest.importorskip("peft")
    net = nn.ModuleDict({"layers": nn.ModuleDict({"0": nn.ModuleDict(), "1": nn.ModuleDict()})})
    adapter = make_adapter()
    for path, factors in adapter.modules().items():
        o, i = factors.product().shape
        net.get_submodule(path.rpartition(".")[0])[path.rpartition(".")[2]] = nn.Linear(i, o, bias=False)
    resized = resize(adapter, max_bytes=22 * 4 * 5).adapter
    assert resized.config.rank_pattern
    write_adapter(resized, tmp_path)
    loaded = peft.PeftModel.from_pretrained(net, tmp_path)
    for path, factors in resized.modules().items():
        delta = loaded.base_model.model.get_submodule(path).get_delta_weight("default")
        torch.testing.assert_close(delta, factors.product(), atol=1e-6, rtol=1e-6)


def test_a_zero_delta_stays_a_zero_delta_of_rank_one(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    zero = Adapter(adapter.config, {k: t * 0 if "lora_B" in k else t for k, t in adapter.tensors.items()})
    for layer in resize(zero, energy=0.9).layers:
        assert (layer.rank, layer.error) == (1, 0)


@pytest.mark.parametrize("given", [{}, {"r": 2, "energy": 0.5}, {"r": 2, "max_bytes": 100}])
def test_one_measure_is_given(make_adapter: MakeAdapter, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="exactly one of r, energy"):
        resize(make_adapter(), **given)


def test_what_has_no_plain_delta_is_refused(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    with pytest.raises(AdapterError, match="init_lora_weights='pissa' changed the base"):
        resize(make_adapter(init_lora_weights="pissa"), r=2)
    grouped = {**adapter.tensors, "layers.0.q_proj.lora_B.weight": torch.ones(12, 2, 1)}
    with pytest.raises(AdapterError, match=r"'layers\.0\.q_proj' do not multiply, B is \[12, 2\]"):
        resize(Adapter(adapter.config, grouped), r=2)
    with pytest.raises(AdapterError, match="no pair of factors"):
        resize(Adapter(adapter.config, {"x": torch.ones(1)}), r=2)


def test_a_trained_adapter_answers_nearer_to_itself_the_more_energy_it_keeps(
    assets: Path, stories_model_dir: Path
) -> None:
    folder = assets / "adapters" / "peft_ref_stories260K_e2e_r8"
    golden = load_file(folder / "golden.safetensors")
    adapter = read_adapter(folder)
    away, sizes = [], []
    for energy in (0.5, 0.8, 0.95, 1.0):
        resized = resize(adapter, energy=energy).adapter
        base = load_base(str(stories_model_dir), "float32").model
        model = PeftModel(base, resized.config, adapter=resized).eval()
        with torch.no_grad():
            logits = model(golden["input_ids"]).logits
        away.append(float((logits - golden["logits"]).abs().max()))
        sizes.append(resized.parameters)
    assert away == sorted(away, reverse=True)
    assert sizes == sorted(set(sizes))
    assert away[-1] < 1e-4
