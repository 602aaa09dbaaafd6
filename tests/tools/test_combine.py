"""Combining: the true sum, the ways that are not, and what cannot be combined."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralab.adapters import write_adapter
from loralab.core.adapter import Adapter, Factors
from loralab.core.config import LoraConfig
from loralab.core.mixing import MIXES, Mix, sign_conflict
from loralab.errors import AdapterError, ConfigError
from loralab.tools.combine import combine

MakeAdapter = Callable[..., Adapter]


@pytest.fixture
def two(make_adapter: MakeAdapter) -> dict[str, Adapter]:
    """Adapters with different ranks, scales and targets."""
    shapes = {"layers.0.q_proj": (12, 10), "layers.0.k_proj": (5, 10)}
    return {
        "one": make_adapter(),
        "two": make_adapter(shapes, seed=1, r=3, lora_alpha=5, use_rslora=True, lora_dropout=0.1),
    }


def true_sum(adapters: dict[str, Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for adapter, weight in zip(adapters.values(), weights, strict=True):
        for path, f in adapter.modules().items():
            delta = weight * f.scaling * (f.b_OR.double() @ f.a_RI.double())
            total[path] = total.get(path, torch.zeros_like(delta)) + delta
    return total


def away(factors: Factors, wanted: Tensor) -> float:
    return float((factors.product().double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("method", ["exact", "concatenate"])
@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -1.0), (2.0, 0.0), (-0.5, -0.5)])
def test_the_sum_is_the_true_sum(two: dict[str, Adapter], method: str, weights: tuple[float, float]) -> None:
    combined = combine(two, weights, method)
    wanted = true_sum(two, weights)
    found = combined.adapter.modules()
    assert set(found) >= {path for path, delta in wanted.items() if delta.any()}
    for layer in combined.layers:
        if wanted[layer.module].any():
            assert away(found[layer.module], wanted[layer.module]) < 1e-6
            assert layer.distance < 1e-6
        assert layer.error < 1e-6
        assert found[layer.module].rank == layer.rank
    assert combined.adapter.config.target_modules == {"q_proj", "k_proj", "v_proj"}


def test_exact_takes_no_more_rank_than_it_needs(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    combined = combine({"one": adapter, "again": adapter}, [0.5, 0.5])
    assert {layer.rank for layer in combined.layers} == {4}
    assert {
        layer.rank for layer in combine({"one": adapter, "again": adapter}, [1, 1], "concatenate").layers
    } == {8}
    wide = make_adapter({"w": (5, 40)}, r=4), make_adapter({"w": (5, 40)}, seed=1, r=4)
    assert combine({"a": wide[0], "b": wide[1]}, [1, 1]).layers[0].rank == 5


@pytest.mark.parametrize("r", [1, 3, 5])
def test_a_cut_is_the_best_and_its_error_is_told(two: dict[str, Adapter], r: int) -> None:
    combined = combine(two, [0.7, 0.3], r=r)
    wanted = true_sum(two, [0.7, 0.3])
    for layer in combined.layers:
        s = torch.linalg.svdvals(wanted[layer.module])
        least = float(s[r:].norm() / s.norm())
        assert layer.error == pytest.approx(least, abs=1e-6)
        assert layer.distance == pytest.approx(least, abs=1e-6)
        assert away(combined.adapter.modules()[layer.module], wanted[layer.module]) == pytest.approx(
            least, abs=1e-6
        )


def test_conflict_and_cosine_are_those_of_the_weighted_deltas(two: dict[str, Adapter]) -> None:
    layers = {layer.module: layer for layer in combine(two, [0.7, -0.3]).layers}
    one, other = (a.modules()["layers.0.q_proj"].product() for a in two.values())
    other = -other
    assert layers["layers.0.q_proj"].conflict == pytest.approx(float((one * other < 0).float().mean()))
    cosine = float((one * other).sum() / one.norm() / other.norm())
    assert layers["layers.0.q_proj"].cosine == pytest.approx(cosine, abs=1e-6)
    alone = layers["layers.0.k_proj"]
    assert (alone.conflict, alone.cosine) == (0, 1)


def test_conflict_is_counted_block_by_block(
    monkeypatch: pytest.MonkeyPatch, make_adapter: MakeAdapter
) -> None:
    factors = [make_adapter({"w": (50, 10)}, seed=s).modules()["w"] for s in range(3)]
    whole = sign_conflict(factors)
    monkeypatch.setattr("loralab.core.mixing._BLOCK", 70)
    assert sign_conflict(factors) == whole
    signs = torch.stack([f.product().sign() for f in factors])
    assert whole == pytest.approx(float((signs.amin(0) * signs.amax(0) < 0).float().mean()))


class Net(nn.Module):
    """Three layers that `make_adapter`'s adapters fit."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Module(), nn.Module()])
        self.layers[0].q_proj = nn.Linear(10, 12)
        self.layers[0].v_proj = nn.Linear(10, 6)
        self.layers[1].q_proj = nn.Linear(10, 12)


def peft_delta(
    folder: Path, adapters: dict[str, Adapter], weights: Sequence[float], kind: str, **settings: Any
) -> dict[str, Tensor]:
    """What PEFT's add_weighted_adapter makes of the adapters, as deltas by module."""
    peft = pytest.importorskip("peft")
    for name, adapter in adapters.items():
        write_adapter(adapter, folder / name)
    names = list(adapters)
    model = peft.PeftModel.from_pretrained(Net(), folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(folder / name, name)
    model.add_weighted_adapter(names, list(weights), "mixed", combination_type=kind, **settings)
    return {
        path: model.base_model.model.get_submodule(path).get_delta_weight("mixed").detach()
        for path in next(iter(adapters.values())).modules()
    }


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.7, -0.3)])
def test_factors_is_what_peft_calls_linear_and_far_from_the_sum(
    tmp_path: Path, make_adapter: MakeAdapter, weights: tuple[float, float]
) -> None:
    adapters = {"one": make_adapter(), "two": make_adapter(seed=1, lora_alpha=3)}
    combined = combine(adapters, weights, "factors")
    theirs = peft_delta(tmp_path, adapters, weights, "linear")
    wanted = true_sum(adapters, weights)
    for layer in combined.layers:
        mine = combined.adapter.modules()[layer.module]
        torch.testing.assert_close(mine.product(), theirs[layer.module], atol=1e-5, rtol=1e-5)
        assert layer.distance == pytest.approx(away(mine, wanted[layer.module]), rel=1e-5)
        assert layer.distance > 0.3


@pytest.mark.parametrize("method", ["ties", "magnitude_prune"])
def test_pruning_is_peft_s_on_whole_deltas(tmp_path: Path, make_adapter: MakeAdapter, method: str) -> None:
    adapters = {"one": make_adapter(), "two": make_adapter(seed=1)}
    combined = combine(adapters, [0.8, 0.5], method, r=6, density=0.4)
    settings = {"svd_rank": 6, "svd_full_matrices": False, "density": 0.4}
    theirs = peft_delta(tmp_path, adapters, [0.8, 0.5], f"{method}_svd", **settings)
    for layer in combined.layers:
        mine = combined.adapter.modules()[layer.module].product()
        torch.testing.assert_close(mine, theirs[layer.module], atol=1e-5, rtol=1e-5)
        assert layer.error <= layer.distance


@pytest.mark.parametrize("method", sorted(MIXES))
def test_with_all_entries_kept(two: dict[str, Adapter], method: str) -> None:
    combined = combine(two, [0.6, 0.4], method, r=20, density=1.0)
    wanted = true_sum(two, [0.6, 0.4])
    for layer in combined.layers:
        summed = "ties" not in method or layer.module != "layers.0.q_proj"
        assert (away(combined.adapter.modules()[layer.module], wanted[layer.module]) < 1e-5) is summed


def test_ties_by_hand() -> None:
    one = torch.tensor([[4.0, -3.0, 0.1, 2.0]])
    two = torch.tensor([[-1.0, -5.0, 0.2, 3.0]])
    mixed = Mix("ties", 0.75)([one, two], [1.0, 2.0])
    assert mixed.tolist() == [[4.0, (-3 - 10) / 2, 0.0, (2 + 6) / 2]]
    three = torch.tensor([[-2.0, -5.0, 0.2, 3.0]])
    by_total = Mix("ties", 1.0)([one, two, three], [1.0, 1.0, 1.0])
    by_frequency = Mix("ties", 1.0, "frequency")([one, two, three], [1.0, 1.0, 1.0])
    assert (float(by_total[0, 0]), float(by_frequency[0, 0])) == (4.0, -1.5)


def test_dare_keeps_the_mean_and_follows_its_seed(make_adapter: MakeAdapter) -> None:
    delta = torch.ones(400, 400)
    mixed = Mix("dare", 0.25, generator=torch.Generator().manual_seed(0))([delta], [1.0])
    assert set(mixed.unique().tolist()) == {0.0, 4.0}
    assert float(mixed.mean()) == pytest.approx(1, abs=0.02)
    adapters = {"one": make_adapter(), "two": make_adapter(seed=1)}
    digests = [combine(adapters, [1, 1], "dare", density=0.5, seed=s).adapter.digest() for s in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_a_mix_is_of_full_rank_and_the_cut_says_what_it_lost(two: dict[str, Adapter]) -> None:
    layers = combine(two, [0.6, 0.4], "ties", density=0.3).layers
    assert next(layer for layer in layers if layer.module == "layers.0.q_proj").error > 0.05


@pytest.mark.parametrize(
    ("weights", "given", "fault"),
    [
        ((1, 1), {"method": "exakt"}, "unknown method 'exakt'.*Did you mean 'exact'"),
        ((1,), {}, "2 adapters and 1 weights"),
        ((0, 0), {}, "not all of them 0"),
        ((1, float("nan")), {}, "expected numbers"),
        ((1, 1), {"r": 0}, "r is 0"),
        ((1, 1), {"method": "concatenate", "r": 3}, "'concatenate' sets it itself"),
        ((1, 1), {"density": 0.5}, "'exact' has no density"),
        ((1, 1), {"method": "concatenate", "density": 0.5}, "'concatenate' has no density"),
        ((1, 1), {"method": "ties"}, "'ties' needs a density"),
        ((1, 1), {"method": "ties", "density": 2.0}, r"density is 2\.0"),
    ],
)
def test_settings_that_do_not_fit(
    two: dict[str, Adapter], weights: Sequence[float], given: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ConfigError, match=fault):
        combine(two, weights, **given)


def test_factors_needs_one_rank(two: dict[str, Adapter]) -> None:
    with pytest.raises(AdapterError, match="one rank everywhere; here it is one 4, two 3"):
        combine(two, [1, 1], "factors")


def test_what_cannot_be_combined_is_named(make_adapter: MakeAdapter) -> None:
    plain = make_adapter()

    def refused(other: Adapter, fault: str) -> None:
        with pytest.raises(AdapterError, match=fault) as caught:
            combine({"plain": plain, "other": other}, [1, 1])
        assert "\n" not in str(caught.value)

    magnitude = {"layers.0.q_proj.lora_magnitude_vector": torch.ones(12)}
    refused(
        make_adapter(rest=magnitude),
        r"'other' has a DoRA magnitude, layers\.0\.q_proj\.lora_magnitude_vector.*extract a plain adapter",
    )
    refused(
        make_adapter(rest={"head.weight": torch.ones(2, 2)}), r"head\.weight is saved in full and differs"
    )
    refused(make_adapter({"layers.0.q_proj": (12, 11)}), r"\[12, 11\] in 'other' and \[12, 10\] in 'plain'")
    stack = make_adapter(layer_replication=[[0, 1], [0, 1]])
    refused(stack, r"layer_replication is None in 'plain' and \[\[0, 1\], \[0, 1\]\] in 'other'")
    base = make_adapter(base_model_name_or_path="a/b")
    with pytest.raises(AdapterError, match="'one' was trained on 'a/b' and 'two' on 'c/d'"):
        combine({"one": base, "two": make_adapter(base_model_name_or_path="c/d")}, [1, 1])


def test_metadata_that_changes_no_number_may_differ(
    make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapters = {
        "bare": make_adapter(),
        "task": make_adapter(seed=1, task_type="CAUSAL_LM", fan_in_fan_out=True, revision="main"),
        "base": make_adapter(seed=2, base_model_name_or_path="base", bias="lora_only"),
        "spelt": make_adapter(seed=3, base_model_name_or_path=str(tmp_path / "base") + "/"),
    }
    adapters["bare"].config.auto_mapping = {"base_model_class": "Net"}
    for order in (list(adapters), list(reversed(adapters))):
        sum_ = combine({name: adapters[name] for name in order}, [1, 1, 1, 1]).adapter
        assert (sum_.config.task_type, sum_.config.bias, sum_.config.revision) == (
            "CAUSAL_LM",
            "none",
            "main",
        )
        assert Path(str(sum_.config.base_model_name_or_path)).resolve() == tmp_path / "base"
        assert sum_.config.auto_mapping is None
        wanted = true_sum(adapters, [1, 1, 1, 1])
        assert all(away(factors, wanted[path]) < 1e-6 for path, factors in sum_.modules().items())


def test_metadata_that_says_two_things_is_refused(make_adapter: MakeAdapter) -> None:
    biases = {"layers.0.q_proj.base_layer.bias": torch.ones(12)}

    def refused(one: dict[str, Any], two: dict[str, Any], fault: str) -> None:
        with pytest.raises(AdapterError, match=fault):
            combine({"one": make_adapter(**one), "none": make_adapter(), "two": make_adapter(**two)}, [1] * 3)

    refused(
        {"task_type": "CAUSAL_LM"}, {"task_type": "SEQ_CLS"}, "'CAUSAL_LM' in 'one' and 'SEQ_CLS' in 'two'"
    )
    with pytest.raises(AdapterError, match="bias is 'lora_only' in 'one' and 'all' in 'two'"):
        combine(
            {n: make_adapter(rest=biases, bias=b) for n, b in (("one", "lora_only"), ("two", "all"))}, [1, 1]
        )


def test_modules_saved_alike_are_kept(make_adapter: MakeAdapter) -> None:
    rest = {"head.weight": torch.ones(2, 2)}
    adapters = {n: make_adapter(rest=rest, modules_to_save=["head"], seed=s) for s, n in enumerate("ab")}
    combined = combine(adapters, [1, 1]).adapter
    assert torch.equal(combined.tensors["head.weight"], rest["head.weight"])
    assert combined.config.modules_to_save == ["head"]


def test_targets_that_cannot_be_joined_become_whole_paths(make_adapter: MakeAdapter) -> None:
    one = make_adapter({"layers.0.q_proj": (12, 10)}, layers_to_transform=[0])
    combined = combine({"one": one, "two": make_adapter({"layers.1.v_proj": (6, 10)})}, [1, 1]).adapter
    assert combined.config.target_modules == {"layers.0.q_proj", "layers.1.v_proj"}
    assert combined.config.layers_to_transform is None


@pytest.mark.parametrize("method", ["exact", "concatenate", "factors"])
def test_biases_of_b_are_summed(make_adapter: MakeAdapter, method: str) -> None:
    biases = {f"{path}.lora_B.bias": torch.randn(o) for path, o in (("a", 12), ("b", 6))}
    one = make_adapter({"a": (12, 10), "b": (6, 10)}, rest=biases, lora_bias=True)
    two = make_adapter({"a": (12, 10), "c": (4, 10)}, seed=1, lora_alpha=3)
    combined = combine({"one": one, "two": two}, [0.7, -0.3], method).adapter
    assert combined.config.lora_bias
    for path in ("a", "b"):
        wanted = 0.7 * 1.5 * biases[f"{path}.lora_B.bias"]
        torch.testing.assert_close(combined.tensors[f"{path}.lora_B.bias"], wanted)
    assert not combined.tensors["c.lora_B.bias"].any()


def test_an_embedding_cannot_take_the_bias_of_others(make_adapter: MakeAdapter) -> None:
    one = make_adapter({"a": (12, 10)}, rest={"a.lora_B.bias": torch.ones(12)}, lora_bias=True)
    factors = {"e.lora_embedding_A": torch.ones(4, 9), "e.lora_embedding_B": torch.ones(5, 4)}
    two = Adapter(LoraConfig(r=4, target_modules=["e"]), factors)
    with pytest.raises(AdapterError, match="'e' is an embedding, which cannot have the lora_bias"):
        combine({"one": one, "two": two}, [1, 1])
