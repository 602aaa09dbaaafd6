"""Each script says the same with loralab in PEFT's place as with PEFT."""

from typing import Any

import pytest

Both = tuple[dict[str, Any], dict[str, Any]]


def script(name: str) -> pytest.MarkDecorator:
    """The test that judges what this script says."""
    return pytest.mark.parametrize("both", [name], indirect=True)


def close(ours: list[float], theirs: list[float], rel: float = 2e-4) -> None:
    assert len(ours) == len(theirs) > 0
    assert ours == pytest.approx(theirs, rel=rel, abs=2e-4)


@script("quick_start.py")
def test_the_quick_start(both: Both) -> None:
    ours, theirs = both
    close(ours["losses"], theirs["losses"])
    close(ours["logits"], theirs["logits"], 1e-3)
    for same in ("trainable", "text", "files", "config", "class", "names"):
        assert ours[same] == theirs[same], same
    assert ours["loaded"] == 0
    assert ours["merged"] < 1e-4
    assert ours["losses"][-1] < ours["losses"][0]


@pytest.mark.slow
@script("eight_bit.py")
def test_a_base_in_eight_bits(both: Both) -> None:
    ours, theirs = both
    close(ours["losses"], theirs["losses"], 1e-3)
    for same in ("trainable", "total", "layer", "base", "text"):
        assert ours[same] == theirs[same], same
    assert ours["loaded"] < 1e-3


@script("classifier.py")
def test_sequence_classification(both: Both) -> None:
    ours, theirs = both
    close(ours["losses"], theirs["losses"])
    close(ours["logits"], theirs["logits"], 2e-3)
    for same in ("keys", "kind"):
        assert ours[same] == theirs[same], same
    assert "score" in ours["modules_to_save"]
    assert ours["loaded"] == 0


@script("dora.py")
def test_dora(both: Both) -> None:
    ours, theirs = both
    close(ours["losses"], theirs["losses"])
    close(ours["logits"], theirs["logits"], 1e-3)
    for same in ("linear", "embeddings", "layers", "status", "magnitudes"):
        assert ours[same] == theirs[same], same
    assert ours["back"] == ours["off"] == ours["loaded"] == 0
    assert ours["merged"] < 1e-4


@script("weighted.py")
def test_several_adapters(both: Both) -> None:
    ours, theirs = both
    for name in ("first", "second", "combined"):
        close(ours[name], theirs[name])
    for same in ("adapters", "active", "rank"):
        assert ours[same] == theirs[same], same
    assert ours["cat"] < 1e-6
    assert ours["svd"] < theirs["svd"] + 1e-6
    assert max(ours["mixed"]) < 1e-5


@script("in_transformers.py")
def test_adapters_in_transformers(both: Both) -> None:
    ours, theirs = both
    for name in ("one", "two", "together"):
        close(ours[name], theirs[name])
    for same in ("active", "trains", "keys", "missing", "unexpected", "same"):
        assert ours[same] == theirs[same], same
    assert ours["off"] == ours["loaded"] == ours["wrapped"] == ours["named"] == 0
    assert ours["again"] == ours["injected"] == 0


@script("experts.py")
def test_adapters_of_single_experts(both: Both) -> None:
    ours, theirs = both
    close(ours["wrapped"], theirs["wrapped"])
    close(ours["inside"], theirs["inside"])
    close(ours["inside"], ours["wrapped"])
    assert ours["trains"] == theirs["trains"]
    assert ours["wrapped"] != pytest.approx(ours["plain"], abs=1e-3)


@script("in_diffusers.py")
def test_adapters_in_diffusers(both: Both) -> None:
    ours, theirs = both
    for name in ("plain", "first", "second", "both"):
        close(ours[name], theirs[name])
    for same in ("active", "listed"):
        assert ours[same] == theirs[same], same
    assert ours["off"] == ours["unfused"] == ours["again"] == ours["unloaded"] == ours["reloaded"] == 0
    assert ours["fused"] < 1e-5
    assert max(ours["hot"]) < 1e-5
    assert max(theirs["hot"]) < 1e-5


@pytest.mark.slow
@script("in_trl.py")
def test_sft_in_trl(both: Both) -> None:
    ours, theirs = both
    close(ours["losses"], theirs["losses"], 1e-3)
    close(ours["logits"], theirs["logits"], 2e-3)
    for same in ("adapted", "saved", "whole"):
        assert ours[same] == theirs[same], same
    assert ours["loaded"] < 1e-5
