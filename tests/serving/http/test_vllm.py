"""vLLM's contract for loading and unloading."""

import shutil
from pathlib import Path
from typing import Any

import pytest


def load(server: Any, **body: Any) -> Any:
    """The reply to a wish to load."""
    return server.post("/v1/load_lora_adapter", body)


def unload(server: Any, **body: Any) -> Any:
    """The reply to a wish to unload."""
    return server.post("/v1/unload_lora_adapter", body)


def test_load_use_unload(server: Any, shop: Path) -> None:
    reply = load(server, lora_name="bard", lora_path=str(shop / "adapters" / "poet"))
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'bard' added successfully.")
    assert reply.headers["content-type"].startswith("text/plain")
    assert server.text(model="bard") == server.text(model="poet")
    assert "bard" in [card["id"] for card in server.get("/v1/models").json()["data"]]
    reply = unload(server, lora_name="bard", lora_int_id=3)
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'bard' removed successfully.")
    assert server.write(model="bard").status_code == 404


def test_a_second_load_is_refused_unless_in_place(server: Any, shop: Path) -> None:
    given = {"lora_name": "twice", "lora_path": "poet"}
    assert load(server, **given).status_code == 200
    reply = load(server, **given)
    assert reply.status_code == 400
    assert "already been loaded" in reply.json()["error"]["message"]
    assert load(server, lora_name="twice", lora_path="judge", load_inplace=True).status_code == 200
    assert server.text(model="twice") == server.text(model="judge")
    assert unload(server, lora_name="twice").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "Both 'lora_name' and 'lora_path' must be provided"),
        ({"lora_name": "x"}, 400, "Both"),
        ({"lora_name": "", "lora_path": "poet"}, 400, "Both"),
        ({"lora_name": "x", "lora_path": "nowhere"}, 404, "no adapter"),
        ({"lora_name": "x", "lora_path": "/etc"}, 403, "out of the folders"),
        ({"lora_name": "x", "lora_path": "../tiny"}, 403, "out of the folders"),
        ({"lora_name": "../x", "lora_path": "poet"}, 400, "cannot be the name"),
        ({"lora_name": "tiny", "lora_path": "poet"}, 400, "cannot be the name"),
        ({"lora_name": 5, "lora_path": "poet"}, 422, "lora_name"),
        ({"lora_name": "x", "lora_path": "poet", "lora_id": 1}, 400, "lora_id"),
    ],
)
def test_what_cannot_be_loaded(server: Any, body: dict[str, Any], status: int, says: str) -> None:
    reply = load(server, **body)
    assert reply.status_code == status
    assert says in reply.json()["error"]["message"]


def test_a_damaged_adapter_is_the_askers_fault(server: Any, shop: Path) -> None:
    folder = shop / "adapters" / "torn"
    shutil.copytree(shop / "adapters" / "poet", folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    try:
        reply = load(server, lora_name="x", lora_path="torn")
        assert reply.status_code == 400
        assert "cut off" in reply.json()["error"]["message"]
    finally:
        shutil.rmtree(folder)


def test_what_is_unknown_cannot_be_unloaded(server: Any) -> None:
    reply = unload(server, lora_name="parrot")
    assert reply.status_code == 404
    assert reply.json()["error"]["message"] == "The lora adapter 'parrot' cannot be found."
    assert unload(server).status_code == 400
