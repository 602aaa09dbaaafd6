"""/v1/adapters, and the folders that are watched."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def card(server: Any, name: str) -> dict[str, Any]:
    """What is known of an adapter."""
    reply = server.get(f"/v1/adapters/{name}")
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def names(server: Any) -> set[str]:
    """The models there are."""
    return {entry["id"] for entry in server.get("/v1/models").json()["data"]}


def test_an_adapter_comes_into_memory_with_its_first_request(serve: Any) -> None:
    with serve() as server:
        assert card(server, "poet")["where"] == "disk"
        digest = server.write(model="poet").headers["x-adapter-digest"]
        found = card(server, "poet")
        assert found["where"] in ("ram", "slot", "merged")
        assert (found["digest"], found["rank"]) == (digest, 4)
        assert found["bytes"] > 0
        server.write(model="poet")
        cache = server.get("/v1/adapters").json()["cache"]
        assert (cache["disk_reads"], cache["misses"]) == (1, 1)
        assert cache["bytes"] == found["bytes"]


def test_load_pin_unpin_unload(serve: Any) -> None:
    with serve() as server:
        loaded = server.post("/v1/adapters/judge/load").json()
        assert (loaded["name"], loaded["where"], loaded["pinned"]) == ("judge", "ram", False)
        assert server.post("/v1/adapters/judge/load").status_code == 409
        assert server.post("/v1/adapters/judge/load", {"replace": True, "pin": True}).json()["pinned"]
        assert server.post("/v1/adapters/judge/unpin").json()["pinned"] is False
        assert server.post("/v1/adapters/judge/pin").json()["pinned"] is True
        assert server.post("/v1/adapters/bard/load", {"path": "poet"}).status_code == 200
        assert server.text(model="bard") == server.text(model="poet")
        reply = server.post("/v1/adapters/judge/unload")
        assert (reply.status_code, reply.content) == (204, b"")
        assert server.write(model="judge").status_code == 404
        assert "judge" not in names(server)
        for what in ("load", "unload", "pin", "unpin"):
            assert server.post(f"/v1/adapters/parrot/{what}").status_code == 404
        assert server.get("/v1/adapters/parrot").status_code == 404


def test_when_all_memory_is_pinned_there_is_no_room(serve: Any) -> None:
    from dataclasses import replace

    with serve() as server:
        bytes_of_poet = server.post("/v1/adapters/poet/load").json()["bytes"]
        small = replace(server.engine.settings, max_ram=bytes_of_poet)
    with serve(engine=small) as server:
        assert server.post("/v1/adapters/poet/load", {"pin": True}).status_code == 200
        reply = server.write(model="judge")
        assert reply.status_code == 507
        assert reply.json()["error"]["code"] == "out_of_memory"
        assert server.write(model="poet").status_code == 200


def test_unloading_in_mid_stream_does_not_disturb_the_stream(server: Any, shop: Path) -> None:
    asked = {"model": "leaver", "prompt": "the dog", "max_tokens": 400, "temperature": 0, "ignore_eos": True}
    assert server.post("/v1/adapters/leaver/load", {"path": "pirate"}).status_code == 200
    whole = server.text(**asked)
    with server.http as http, http.stream("POST", "/v1/completions", json={**asked, "stream": True}) as reply:
        lines = reply.iter_lines()
        first = next(lines)
        assert server.post("/v1/adapters/leaver/unload").status_code == 204
        frames = [line.removeprefix("data: ") for line in [first, *lines] if line]
    assert frames[-1] == "[DONE]"
    assert "".join(json.loads(frame)["choices"][0]["text"] for frame in frames[:-1]) == whole
    assert server.write(model="leaver").status_code == 404


def test_the_folder_is_watched(serve: Any, shop: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with serve(roots=[runs], watch_seconds=0.1) as server:
        assert names(server) == {"tiny"}
        shutil.copytree(shop / "adapters" / "poet", runs / "night" / "adapter")
        wait_until(lambda: "night" in names(server))
        first = server.write(model="night")
        shutil.rmtree(runs / "night" / "adapter")
        shutil.copytree(shop / "adapters" / "judge", runs / "night" / "adapter")

        def changed() -> bool:
            reply = server.write(model="night")
            return (
                reply.status_code == 200
                and reply.headers["x-adapter-digest"] != first.headers["x-adapter-digest"]
            )

        wait_until(changed)
        assert server.text(model="night") != first.json()["choices"][0]["text"]
        shutil.copytree(shop / "adapters" / "poet", runs / "day")
        wait_until(lambda: "day" in names(server))
        shutil.rmtree(runs / "day")
        wait_until(lambda: "day" not in names(server))
        assert server.write(model="day").status_code == 404
        told = [line for line in server.log if line["event"] == "adapters"]
        assert ["night"] in [line["changed"] for line in told]


@pytest.mark.parametrize("place", ["run", "run/adapter"])
def test_one_run_is_served_by_its_name(serve: Any, shop: Path, tmp_path: Path, place: str) -> None:
    shutil.copytree(shop / "adapters" / "poet", tmp_path / "run" / "adapter")
    with serve(roots=[tmp_path / place]) as server:
        assert names(server) == {"tiny", "run"}
        assert server.write(model="run").status_code == 200
