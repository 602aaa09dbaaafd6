"""`loralab serve` as a process: what it prints, what it refuses, how it ends."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

LONG = {"model": "poet", "prompt": "the dog", "temperature": 0, "ignore_eos": True, "max_tokens": 100_000}


@dataclass
class Process:
    """A server of its own process."""

    popen: subprocess.Popen[str]
    url: str = ""
    said: list[str] = field(default_factory=list)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        self.popen.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end, with what it printed in `said`."""
        out, _ = self.popen.communicate(timeout=60)
        self.said += out.splitlines()
        return self.popen.returncode


@pytest.fixture
def roomy(bench: Path) -> Path:
    """The bench, with a base of 100,000 positions, so that there is something to interrupt."""
    config = bench / "tiny" / "config.json"
    values = json.loads(config.read_text()) | {"max_position_embeddings": 100_000}
    config.write_text(json.dumps(values))
    return bench


@contextlib.contextmanager
def serving(*flags: object, port: str = "0") -> Iterator[Process]:
    """A server over the base "tiny" and the runs of the current folder."""
    words = ["serve", "--model", "tiny", "--adapters", "runs", "--dtype", "float32", "--port", port]
    words += ["--cache-tokens", "100000", "--batch-tokens", "64", "--backend", "continuous"]
    words += [str(flag) for flag in flags]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    popen = subprocess.Popen(
        [sys.executable, "-m", "loralab.cli", *words], stdout=subprocess.PIPE, text=True, env=environment
    )
    process = Process(popen)
    try:
        assert popen.stdout is not None
        while not process.url:
            line = popen.stdout.readline()
            assert line, "it ended"
            process.said.append(line.rstrip("\n"))
            found = re.search(r"http://[\d.]+:\d+", line)
            process.url = found.group() if found else ""
        yield process
    finally:
        if popen.poll() is None:
            popen.kill()
            popen.communicate()


@pytest.mark.slow
def test_it_says_where_it_is_and_what_to_type(bench: Path) -> None:
    with serving("--max-ram", "50MB") as server:
        assert server.said[0] == f"serving: tiny and 1 adapter at {server.url}"
        assert server.popen.stdout is not None
        command = server.popen.stdout.readline()
        assert command.startswith(f"try: curl {server.url}/v1/chat/completions -H 'content-type")
        body = json.loads(command.partition(" -d '")[2].rstrip().removesuffix("'"))
        reply = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "max_tokens": 3}, timeout=60)
        assert reply.status_code == 200
        assert reply.headers["x-adapter-id"] == "poet"
        cache = httpx.get(f"{server.url}/v1/adapters", timeout=60).json()["cache"]
        assert cache["max_bytes"] == 50_000_000
        assert server.stop() == 0
    assert [line.split("  ")[1] for line in server.said[1:]] == [
        "200 POST /v1/chat/completions",
        "200 GET /v1/adapters",
        "draining",
        "stopped",
    ]


@pytest.mark.slow
def test_its_log_as_json(bench: Path) -> None:
    with serving("--json") as server:
        httpx.post(f"{server.url}/v1/completions", json={**LONG, "max_tokens": 3}, timeout=60)
        assert server.stop(signal.SIGINT) == 0
    lines = [json.loads(line) for line in server.said]
    assert [line["event"] for line in lines] == ["serving", "request", "draining", "stopped"]
    assert lines[0] == {"event": "serving", "url": server.url, "base": "tiny", "adapters": 1}
    assert (lines[1]["adapter"], lines[1]["completion_tokens"]) == ("poet", 3)


@contextlib.contextmanager
def streaming(server: Process, body: dict[str, Any]) -> Iterator[Iterator[str]]:
    """A stream that has begun."""
    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", f"{server.url}/v1/completions", json={**body, "stream": True}) as reply,
    ):
        assert reply.status_code == 200
        lines = (line.removeprefix("data: ") for line in reply.iter_lines() if line)
        next(lines)
        yield lines


@pytest.mark.slow
def test_told_to_stop_it_finishes_what_it_began(roomy: Path) -> None:
    with serving("--deadline", 60) as server, httpx.Client(base_url=server.url, timeout=60) as other:
        assert other.get("/health").status_code == 200
        with streaming(server, {**LONG, "max_tokens": 1000}) as lines:
            server.popen.send_signal(signal.SIGTERM)
            end = time.monotonic() + 20
            while other.get("/health").status_code == 200:
                assert time.monotonic() < end
            assert other.get("/health/ready").status_code == 503
            assert other.get("/health/live").json() == {"status": "draining"}
            refused = other.post("/v1/completions", json=LONG)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "unavailable"
            frames = list(lines)
        assert frames[-1] == "[DONE]"
        assert json.loads(frames[-2])["choices"][0]["finish_reason"] == "length"
        assert server.wait() == 0


@pytest.mark.slow
def test_at_the_deadline_a_stream_ends_with_an_error(roomy: Path) -> None:
    with serving("--deadline", 0.5) as server:
        with streaming(server, LONG) as lines:
            server.popen.send_signal(signal.SIGTERM)
            frames = list(lines)
        error = json.loads(frames[-1])["error"]
        assert (error["type"], error["code"]) == ("server_error", "unavailable")
        assert server.wait() == 0


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(roomy: Path) -> None:
    with serving("--deadline", 600) as server:
        with streaming(server, LONG) as lines:
            server.popen.send_signal(signal.SIGTERM)
            next(lines)
            time.sleep(0.2)
            server.popen.send_signal(signal.SIGINT)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert server.wait() == 128 + signal.SIGINT


@pytest.mark.slow
def test_killed_it_leaves_nothing_behind(roomy: Path) -> None:
    with serving() as server:
        before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
        with streaming(server, LONG) as lines:
            server.popen.kill()
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert server.wait() == -signal.SIGKILL
        port = server.url.rpartition(":")[2]
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before
    with serving(port=port) as again:
        assert again.url == server.url
        reply = httpx.post(f"{again.url}/v1/completions", json={**LONG, "max_tokens": 3}, timeout=60)
        assert reply.status_code == 200
        assert again.stop() == 0


@pytest.mark.slow
def test_the_keys_are_read_again_at_sighup(bench: Path) -> None:
    keys = bench / "keys.toml"
    keys.write_text("admin_key = 'one'\n", encoding="utf8")
    keys.chmod(0o644)
    with serving("--api-keys", keys, "--json") as server:
        assert server.popen.stdout is not None

        def status(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            return int(httpx.get(f"{server.url}/v1/models", headers=headers, timeout=60).status_code)

        def event() -> dict[str, Any]:
            assert server.popen.stdout is not None
            while True:
                line = dict(json.loads(server.popen.stdout.readline()))
                if line["event"] == "keys":
                    return line

        assert (status("one"), status("two")) == (200, 401)
        keys.write_text("admin_key = 'two'\n", encoding="utf8")
        server.popen.send_signal(signal.SIGHUP)
        assert event()["level"] == "info"
        assert (status("one"), status("two")) == (401, 200)
        keys.write_text("admin_kye = 'three'\n", encoding="utf8")
        server.popen.send_signal(signal.SIGHUP)
        assert f"{keys}:1: unknown field 'admin_kye'" in event()["error"]
        assert status("two") == 200
        assert server.stop() == 0


@pytest.mark.slow
def test_a_run_that_is_finished_meanwhile_appears(bench: Path) -> None:
    with serving("--json") as server, httpx.Client(base_url=server.url, timeout=60) as client:
        shutil.copytree("runs/poet", "runs/twin")
        end = time.monotonic() + 20
        while "twin" not in client.get("/v1/models").text:
            assert time.monotonic() < end
            time.sleep(0.1)
        digests = {
            client.post("/v1/completions", json={**LONG, "max_tokens": 2, "model": name}).headers[
                "x-adapter-digest"
            ]
            for name in ("poet", "twin")
        }
        assert len(digests) == 1
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--adapters", "nowhere"], "--adapters nowhere: there is no such folder."),
        (["--port", "70000"], "--port is 70000; expected 0 (a free one) to 65535."),
        (["--deadline", "-1"], "--deadline is -1.0; expected 0 or more seconds."),
        (["--max-ram", "much"], "--max-ram is 'much'; expected a size such as 8GB or 500MB."),
        (["--max-ram", "0GB"], "--max-ram is '0GB'; expected more than nothing."),
        (["--slots", "0"], "--slots is 0; expected at least 1."),
        (["--api-keys", "keys.toml"], "keys.toml: cannot be read (No such file or directory)"),
        (["--host", "256.0.0.1"], "cannot listen at 256.0.0.1:8000"),
        (["--model", "nothing"], "nothing"),
        (["--backend", "quick"], "quick"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    bench: Path, loralab: Any, flags: list[str], says: str
) -> None:
    given = flags if "--model" in flags else ["--model", "tiny", *flags]
    result = loralab("serve", *given)
    assert result.code == 2
    assert says in result.err
    assert len(result.err.splitlines()) == 1


def test_a_port_that_is_in_use(bench: Path, loralab: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = loralab("serve", "--model", "tiny", "--port", port)
    assert result.code == 2
    assert f"cannot listen at 127.0.0.1:{port} (address already in use)" in result.err


def test_without_the_extra_it_says_what_to_install(
    bench: Path, loralab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loralab.cli.serving.find_spec", lambda name: None if name == "uvicorn" else True)
    result = loralab("serve", "--model", "tiny")
    assert result.code == 2
    assert result.err == "loralab: serve needs uvicorn: pip install 'loralab[serve]'.\n"
