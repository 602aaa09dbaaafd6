"""What is around a request: ids, headers, its largest size, the log, the metrics, a client that leaves."""

import json
import socket
import time
from typing import Any

import pytest

from loralab.serving.http.log import Record, event, plain
from loralab.serving.http.metrics import LABELS, Metrics
from loralab.serving.requests import Answer


def test_a_request_has_an_id(server: Any) -> None:
    ids = {server.get("/v1/models").headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    with server.http as http:
        assert http.get("/nothing", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
        assert http.get("/v1/models", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"
        assert (
            http.get("/v1/models", headers={"x-request-id": "a" * 200}).headers["x-request-id"] != "a" * 200
        )


def test_headers_say_who_answered(server: Any) -> None:
    reply = server.write(model="tiny:poet")
    assert reply.headers["x-adapter-id"] == "poet"
    digest = reply.headers["x-adapter-digest"]
    assert digest == server.get("/v1/adapters/poet").json()["digest"] != ""
    assert float(reply.headers["x-queue-time"]) >= 0
    assert reply.headers["x-mode"] in ("mixed", "merged")
    base = server.write(model="tiny")
    assert base.headers["x-mode"] == "base"
    assert "x-adapter-id" not in base.headers
    with server.http as http:
        asked = {"model": "poet", "prompt": "a", "max_tokens": 2, "stream": True}
        with http.stream("POST", "/v1/completions", json=asked) as stream:
            stream.read()
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["x-adapter-digest"] == digest


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_is_not_read(serve: Any, declared: bool) -> None:
    with serve(max_body=1000) as server:
        assert server.write().status_code == 200
        content = json.dumps({"model": "tiny", "prompt": "a" * 2000}).encode()

        def pieces() -> Any:
            yield from (content[at : at + 100] for at in range(0, len(content), 100))

        with server.http as http:
            headers = {"content-type": "application/json"}
            body = content if declared else pieces()
            reply = http.post("/v1/completions", content=body, headers=headers)
        assert reply.status_code == 413
        assert reply.json()["error"]["code"] == "request_entity_too_large"
        assert "1000 bytes" in reply.json()["error"]["message"]
        assert server.write().status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/v1/completions", 405)]
)
def test_routes_that_are_none(server: Any, method: str, path: str, status: int) -> None:
    with server.http as http:
        reply = http.request(method, path)
    assert reply.status_code == status
    assert path in reply.json()["error"]["message"]


def test_a_line_a_request(serve: Any) -> None:
    with serve() as server:
        server.write(model="poet")
        server.write(model="parrot")
        server.get("/health")
        whole, refused = server.log
    assert whole["event"] == "request"
    assert (whole["level"], whole["status"], whole["route"]) == ("info", 200, "/v1/completions")
    assert (whole["model"], whole["adapter"]) == ("poet", "poet")
    assert len(str(whole["digest"])) == 64
    assert whole["prompt_tokens"] == 3
    assert 1 <= int(str(whole["completion_tokens"])) <= 8
    times = [whole[f"{name}_seconds"] for name in ("queue", "first_token", "total")]
    assert 0 <= float(str(times[0])) <= float(str(times[1])) <= float(str(times[2]))
    assert (refused["level"], refused["status"]) == ("warning", 404)
    assert "parrot" in str(refused["error"])
    assert json.loads(json.dumps(whole)) == whole


def test_a_clients_words_do_not_make_a_second_line() -> None:
    record = Record(id="1", method="POST", route="/v1/completions", status=404)
    record.model, record.error = "a\nb", "no 'a\nb'\x1b[2J"
    line = plain(record.fields())
    assert "\n" not in line
    assert "\x1b" not in line
    assert plain(event("draining", running=2)).endswith("draining  running 2")


def test_what_prometheus_reads(serve: Any) -> None:
    with serve() as server:
        for model in ("poet", "poet", "tiny", "poet:0.5+judge:0.5"):
            server.write(model=model)
        server.write(model="parrot")
        server.write(model="poet", n=2)
        requests = server.series("loralab_requests_total")
        assert requests == {
            'loralab_requests_total{adapter="poet",status="200"}': 2,
            'loralab_requests_total{adapter="base",status="200"}': 1,
            'loralab_requests_total{adapter="poet:0.5+judge:0.5",status="200"}': 1,
            'loralab_requests_total{adapter="unknown",status="404"}': 1,
        }
        tokens = server.series("loralab_tokens_total")
        assert tokens['loralab_tokens_total{adapter="poet",kind="prompt"}'] == 6
        assert tokens['loralab_tokens_total{adapter="poet",kind="completion"}'] >= 2
        first = server.series("loralab_time_to_first_token_seconds_count")
        assert sum(first.values()) == 4
        assert server.series("loralab_disk_reads_total") == {"loralab_disk_reads_total": 2}
        assert sum(server.series("loralab_switches_total").values()) >= 1
        assert server.series("loralab_adapter_cache_bytes")["loralab_adapter_cache_bytes"] > 0
        info = server.series("vllm:lora_requests_info")
        (name, value), *_ = info.items()
        assert name == (
            'vllm:lora_requests_info{max_lora="32",running_lora_adapters="",waiting_lora_adapters=""}'
        )
        assert abs(value - time.time()) < 60


def test_who_runs_is_told_while_it_runs(server: Any) -> None:
    asked = {
        "model": "poet:0.5+judge:0.5",
        "prompt": "a",
        "max_tokens": 2000,
        "stream": True,
        "ignore_eos": True,
    }
    with server.http as http, http.stream("POST", "/v1/completions", json=asked) as reply:
        lines = reply.iter_lines()
        next(lines)
        (name,) = server.series("vllm:lora_requests_info")
        assert 'running_lora_adapters="judge,poet"' in name
        assert sum(server.series("vllm:num_requests_running").values()) == 1
    settle(server)


def test_adapters_beyond_the_labels_share_one() -> None:
    metrics = Metrics()
    labels = [metrics.label(f"adapter-{number}") for number in range(LABELS + 50)]
    assert len(set(labels)) == LABELS + 1
    assert metrics.label("adapter-0") == "adapter-0"
    assert labels[-1] == "other"


def settle(server: Any) -> None:
    """Wait until nothing runs."""
    end = time.monotonic() + 20
    while server.engine.running or server.engine.waiting:
        assert time.monotonic() < end, "it still runs"
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_request(serve: Any, stream: bool) -> None:
    with serve() as server:
        body = json.dumps(
            {"model": "poet", "prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": stream}
        ).encode()
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(body), body)
            )
            if stream:
                assert b"200 OK" in raw.recv(100)
            else:
                while not server.engine.running:
                    time.sleep(0.01)
            answers: list[Answer] = server.engine.running
            assert len(answers) == 1
        settle(server)
        assert answers[0].finish == "cancelled"
        assert len(answers[0].tokens) < 4000
        line = server.log[-1]
        assert line["error"] == "the client has left."
        assert server.get("/v1/adapters/poet").json()["in_use"] == 0


def test_a_client_that_does_not_read_is_given_up(serve: Any) -> None:
    with serve(max_behind=8, send_buffer=4096) as server:
        body = json.dumps(
            {"model": "poet", "prompt": ["a"] * 8, "max_tokens": 4000, "ignore_eos": True, "stream": True}
        ).encode()
        port = int(server.url.rpartition(":")[2])
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            raw.connect(("127.0.0.1", port))
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(body), body)
            )
            end = time.monotonic() + 60
            while not server.engine.running:
                assert time.monotonic() < end
                time.sleep(0.01)
            answers = server.engine.running
            settle(server)
        assert {answer.finish for answer in answers} <= {"cancelled", "length"}
