"""Comparing and describing: identities that hold for any adapter."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loralab.adapters import read_adapter
from loralab.core.adapter import Adapter
from loralab.core.describe import describe, entropy_rank, place_in_grid, stable_rank
from loralab.errors import AdapterError
from loralab.tools.compare import compare, principal_angles

MakeAdapter = Callable[..., Adapter]


def changed(adapter: Adapter, ending: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Adapter:
    return Adapter(
        adapter.config, {k: change(t) if k.endswith(ending) else t for k, t in adapter.tensors.items()}
    )


def test_an_adapter_is_like_itself(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    found = compare(adapter, adapter)
    assert found.cosine == pytest.approx(1)
    assert not found.only_first
    for layer in found.layers:
        assert layer.cosine == pytest.approx(1)
        assert max(layer.columns.angles + layer.rows.angles) < 1e-6
        assert layer.columns.overlap == pytest.approx(1)


def test_its_negative_points_the_other_way_in_the_same_subspaces(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    found = compare(adapter, changed(adapter, "lora_B.weight", lambda b: -2 * b))
    assert found.cosine == pytest.approx(-1)
    assert found.norms[1] == pytest.approx(2 * found.norms[0])
    assert all(layer.rows.overlap == pytest.approx(1) for layer in found.layers)


def test_shared_a_means_equal_rows_and_strange_columns(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter({"w": (300, 40)})
    other = changed(adapter, "lora_B.weight", lambda b: torch.randn_like(b, dtype=b.dtype))
    (layer,) = compare(adapter, other).layers
    assert layer.rows.overlap == pytest.approx(1)
    assert max(layer.rows.angles) < 1e-4
    assert layer.columns.by_chance == 4 / 300
    assert layer.columns.overlap < 10 * layer.columns.by_chance


def test_norms_and_cosines_are_those_of_the_deltas(make_adapter: MakeAdapter) -> None:
    one, two = make_adapter(), make_adapter(seed=1, use_rslora=True)
    found = compare(one, two)
    a = torch.cat([f.product().flatten() for f in one.modules().values()])
    b = torch.cat([f.product().flatten() for f in two.modules().values()])
    assert found.norms == (pytest.approx(float(a.norm())), pytest.approx(float(b.norm())))
    assert found.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-6)


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 30.0, 45.0, 60.0, 90.0])
def test_principal_angles_are_the_angles_by_which_one_was_turned(degrees: float) -> None:
    turn = math.radians(degrees)
    u = torch.eye(5, 2, dtype=torch.float64)
    w = torch.zeros(5, 2, dtype=torch.float64)
    w[0, 0], w[3, 0] = math.cos(turn), math.sin(turn)
    w[1, 1] = 1
    assert principal_angles(u, w) == (pytest.approx(0, abs=1e-9), pytest.approx(degrees, rel=1e-9, abs=1e-9))
    assert principal_angles(u, w[:, :1]) == (pytest.approx(degrees, rel=1e-9, abs=1e-9),)
    assert principal_angles(u[:, :0], w) == ()


def test_modules_of_one_alone_are_listed_and_count_as_zero(make_adapter: MakeAdapter) -> None:
    one, two = make_adapter({"a": (4, 4), "b": (4, 4)}), make_adapter({"a": (4, 4), "c": (4, 4)})
    found = compare(one, two)
    assert (found.only_first, found.only_second) == (("b",), ("c",))
    assert found.cosine < 1
    with pytest.raises(AdapterError, match="no module in common: one has 'b', the other 'c'"):
        compare(make_adapter({"b": (4, 4)}), make_adapter({"c": (4, 4)}))
    with pytest.raises(AdapterError, match=r"'a' is \[4, 4\] in one adapter and \[4, 5\]"):
        compare(one, make_adapter({"a": (4, 5)}))


def test_a_zero_delta_has_no_directions(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    zero = changed(adapter, "lora_B.weight", torch.zeros_like)
    found = compare(adapter, zero)
    assert found.cosine == 0
    assert all(layer.rows.angles == () and layer.rows.overlap == 0 for layer in found.layers)
    assert all((d.stable_rank, d.entropy_rank, d.norm) == (0, 0, 0) for d in describe(zero))


def test_spectra_are_those_of_the_deltas(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    for found in describe(adapter):
        delta = adapter.modules()[found.module].product().double()
        torch.testing.assert_close(
            torch.tensor(found.spectrum, dtype=torch.float64),
            torch.linalg.svdvals(delta)[: found.r],
            rtol=1e-5,
            atol=1e-6,
        )
        assert found.norm == pytest.approx(float(delta.norm()), rel=1e-5)
        assert found.stable_rank == pytest.approx(
            float(delta.norm() ** 2 / torch.linalg.matrix_norm(delta, 2) ** 2)
        )
        assert 1 <= found.stable_rank <= found.r
        assert 1 <= found.entropy_rank <= found.r


def test_effective_ranks_of_known_spectra() -> None:
    assert stable_rank([2.0] * 5) == pytest.approx(5)
    assert entropy_rank([2.0] * 5) == pytest.approx(5)
    assert stable_rank([3.0, 0.0]) == entropy_rank([3.0, 0.0]) == pytest.approx(1)
    assert stable_rank([2.0, 1.0]) == pytest.approx(1.25)
    assert entropy_rank([2.0, 1.0]) == pytest.approx(3 / 2 ** (2 / 3))


def test_grouped_factors_have_no_spectrum(make_adapter: MakeAdapter) -> None:
    adapter = changed(make_adapter(), "layers.0.v_proj.lora_B.weight", lambda b: b[:, :2])
    found = {d.module: d for d in describe(adapter)}
    assert found["layers.0.v_proj"].spectrum == ()
    assert found["layers.0.q_proj"].spectrum


def test_places_in_a_grid() -> None:
    assert place_in_grid("model.layers.3.self_attn.q_proj") == ("layers.3", "self_attn.q_proj")
    assert place_in_grid("h.0.mlp") == ("h.0", "mlp")
    assert place_in_grid("lm_head") == ("", "lm_head")


def test_of_dora_adapters_ba_and_the_magnitudes_are_compared(make_adapter: MakeAdapter) -> None:
    rest = {"layers.0.q_proj.lora_magnitude_vector": torch.full((12,), 2.0)}
    plain, one = make_adapter(), make_adapter(rest=rest, use_dora=True)
    other = changed(one, "vector", lambda m: m * 1.1)
    found = {layer.module: layer for layer in compare(one, other).layers}
    assert found["layers.0.q_proj"].magnitude == pytest.approx(0.1)
    assert found["layers.0.q_proj"].cosine == pytest.approx(1)
    assert found["layers.0.v_proj"].magnitude is None
    assert compare(one, plain).layers[0].magnitude is None
    described = {d.module: d for d in describe(one)}
    assert described["layers.0.q_proj"].magnitude == pytest.approx(2 * 12**0.5)
    assert described["layers.0.q_proj"].norm == describe(plain)[0].norm
    assert describe(plain)[0].magnitude is None


def test_a_trained_adapter_has_a_smaller_effective_than_nominal_rank(assets: Path) -> None:
    found = describe(read_adapter(assets / "adapters" / "peft_ref_stories260K_e2e_r8"))
    assert len(found) == 35
    assert all(1 < d.stable_rank < d.entropy_rank < 8 for d in found)
