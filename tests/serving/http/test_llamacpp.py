"""llama.cpp's scales: what a request that names the base gets."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def unscaled(server: Any) -> Iterator[None]:
    """Leave the scales as they were."""
    yield
    assert server.post("/lora-adapters", []).status_code == 200


def numbers(server: Any) -> dict[str, int]:
    """The adapters' numbers."""
    return {entry["path"]: entry["id"] for entry in server.get("/lora-adapters").json()}


def test_scales_act_on_the_base_only(server: Any) -> None:
    base, poet, judge = (server.text(model=name) for name in ("tiny", "poet", "judge"))
    known = numbers(server)
    assert server.post("/lora-adapters", [{"id": known["poet"], "scale": 1.0}]).json() == {"success": True}
    assert server.text(model="tiny") == poet != base
    assert server.text(model="judge") == judge
    assert {e["path"]: e["scale"] for e in server.get("/lora-adapters").json()}["poet"] == 1.0
    scaled = [{"id": known["poet"], "scale": 0.7}, {"id": known["judge"], "scale": 0.3}]
    assert server.post("/lora-adapters", scaled).status_code == 200
    assert server.text(model="tiny") == server.text(model="poet:0.7+judge:0.3")
    assert server.post("/lora-adapters", [{"id": known["poet"], "scale": 0.0}]).status_code == 200
    assert server.text(model="tiny") == base


def test_who_is_not_in_the_list_gets_nothing(server: Any) -> None:
    known = numbers(server)
    server.post("/lora-adapters", [{"id": known["poet"], "scale": 1.0}])
    server.post("/lora-adapters", [{"id": known["judge"], "scale": 1.0}])
    assert server.text(model="tiny") == server.text(model="judge")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ([{"id": 999, "scale": 1}], 400),
        ([{"id": 0}], 422),
        ([{"id": 0, "scale": "NaN"}], 422),
        ([{"id": -1, "scale": 1}], 422),
        ([{"id": 0, "scale": 1, "name": "poet"}], 400),
        ({"id": 0, "scale": 1}, 422),
    ],
)
def test_a_list_with_a_fault_changes_nothing(server: Any, body: Any, status: int) -> None:
    base = server.text(model="tiny")
    assert server.post("/lora-adapters", body).status_code == status
    assert server.text(model="tiny") == base
