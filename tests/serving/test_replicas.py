"""Two replicas on Ray Serve behind one address, in processes of their own, asked by OpenAI's client."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra 'scale' is not installed")
pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

import httpx
import openai

from loralab.adapters import get_peft_model
from loralab.core.config import LoraConfig
from loralab.errors import ConfigError, ModelError
from loralab.models import load_base
from loralab.serving.engine import Engine
from loralab.serving.http.server import bind
from loralab.serving.replicas import fleet as fleets
from loralab.serving.replicas.affinity import adapter_of
from loralab.serving.replicas.scrape import joined
from loralab.serving.replicas.settings import Fleet
from loralab.serving.requests import Request
from loralab.serving.sampling import Sampling

NAMES = [f"a{number}" for number in range(6)]
PROMPT = "the little dog ran to"
LENGTH = 12
SERVER = """
import json, sys
from pathlib import Path
from loralab.serving.engine import EngineSettings
from loralab.serving.replicas.fleet import run_fleet
from loralab.serving.replicas.settings import Fleet


def started(host, port, replicas):
    print(json.dumps({"event": "serving", "url": f"http://{host}:{port}"}), flush=True)


folder = Path(sys.argv[1])
fleet = Fleet(
    model=str(folder / "base"),
    adapters=(folder / "adapters",),
    port=0,
    dtype="float32",
    engine=EngineSettings(slots=4),
    deadline=20,
)
run_fleet(fleet, lambda line: print(json.dumps(line), flush=True), started)
"""


@pytest.fixture(scope="module")
def folder(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and six adapters that differ."""
    import torch

    place = tmp_path_factory.mktemp("fleet")
    tiny.write_base(place / "base", chat=True)
    for seed, name in enumerate(NAMES):
        model = tiny.make_model()
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(model, config).save_pretrained(place / "adapters" / name)
    return place


@dataclass
class Server:
    """A fleet in a process of its own, and what it printed."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def client(self) -> Any:
        """OpenAI's client, which tries everything once."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    def read(self) -> None:
        """Keep what is printed."""
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def replicas(self) -> dict[str, dict[str, Any]]:
        """How each replica is, by its name."""
        told = httpx.get(f"{self.url}/health", timeout=30).json()
        return {one["id"]: one for one in told["replicas"]}

    def ask(self, name: str) -> tuple[str, str]:
        """Return what an adapter writes, and which replica it was."""
        answer = self.client.completions.with_raw_response.create(
            model=name, prompt=PROMPT, max_tokens=LENGTH, temperature=0
        )
        return answer.parse().choices[0].text, answer.headers["x-replica"]


def until(condition: Any, seconds: float, what: str) -> None:
    """Wait for something, but not for ever."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come in {seconds} s"
        time.sleep(0.1)


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[Server]:
    """A running fleet of two."""
    script = tmp_path / "server.py"
    script.write_text(SERVER, encoding="utf8")
    source = Path(fleets.__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    environment.pop("RAY_ADDRESS", None)
    command, pipe = [sys.executable, str(script), str(folder)], subprocess.PIPE
    with (
        (tmp_path / "errors").open("w") as errors,
        subprocess.Popen(command, env=environment, stdout=pipe, stderr=errors, text=True) as process,
    ):
        running = Server(process)
        reader = threading.Thread(target=running.read)
        reader.start()
        try:
            until(lambda: running.lines or process.poll() is not None, 240, "the server")
            assert running.lines, (tmp_path / "errors").read_text(encoding="utf8")
            running.url = json.loads(running.lines[0])["url"]
            yield running
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(60)
            reader.join()


@pytest.mark.slow
def test_a_fleet_of_two(server: Server, folder: Path) -> None:
    pids = {one["pid"] for one in server.replicas().values()}
    assert len(pids) == 2
    places = asked_sixty_times(server, written_alone(folder))
    streamed(server)
    refused(server)
    shown_for_each(server)
    changed_everywhere(server, folder)
    lost_and_replaced(server, places)
    ended(server)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def written_alone(folder: Path) -> dict[str, str]:
    """What one engine writes with each adapter, and the base."""
    base = load_base(str(folder / "base"), "float32")
    with Engine(base, [folder / "adapters"]) as engine:
        ids = engine.text_ids(PROMPT)
        found = {
            name: engine.submit(Request(ids, name, Sampling(LENGTH, temperature=0))).text()
            for name in (*NAMES, "")
        }
    assert len(set(found.values())) > len(NAMES) / 2, "the adapters must differ"
    return {name or "base": text for name, text in found.items()}


def asked_sixty_times(server: Server, right: dict[str, str]) -> dict[str, str]:
    """Each adapter's requests go to one replica, which reads its file once; the words are the right ones."""
    places: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(60):
        name = NAMES[number % len(NAMES)]
        text, replica = server.ask(f"base:{name}" if number % 2 else name)
        assert text == right[name], name
        places[name][replica] += 1
    assert server.ask("base")[0] == right["base"]
    assert sum(count.most_common(1)[0][1] for count in places.values()) >= 48, places
    assert len({count.most_common(1)[0][0] for count in places.values()}) == 2, "both work"
    reads = sum(one["disk_reads"] for one in server.replicas().values())
    assert len(NAMES) <= reads <= 2 * len(NAMES)
    return {name: count.most_common(1)[0][0] for name, count in places.items()}


def streamed(server: Server) -> None:
    """A stream comes piece by piece; one that nobody reads any more is given up."""
    asked = {"model": "a1", "prompt": PROMPT, "temperature": 0}
    pieces = list(server.client.completions.create(**asked, max_tokens=LENGTH, stream=True))
    assert len(pieces) > 2
    assert "".join(piece.choices[0].text for piece in pieces) == server.ask("a1")[0]
    assert pieces[-1].choices[0].finish_reason in ("length", "stop")
    left = server.client.completions.create(**asked, max_tokens=100, stream=True)
    next(iter(left))
    left.close()
    until(lambda: not any(one["running"] for one in server.replicas().values()), 20, "an end of the request")


def refused(server: Server) -> None:
    """What is wrong is said as one server says it."""
    with pytest.raises(openai.NotFoundError, match="there is no model or adapter 'none'"):
        server.ask("none")
    with pytest.raises(openai.NotFoundError, match="no model 'none'"):
        server.client.models.retrieve("none")
    assert [model.id for model in server.client.models.list()] == ["base", *NAMES]
    assert httpx.get(f"{server.url}/nothing").status_code == 404
    assert httpx.post(f"{server.url}/v1/completions", content=b"{").status_code == 422
    large = httpx.post(f"{server.url}/v1/completions", content=b" " * (9 << 20), timeout=30)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
    answer = httpx.get(f"{server.url}/v1/models", headers={"x-request-id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]


def shown_for_each(server: Server) -> None:
    """The metrics say whose they are."""
    text = httpx.get(f"{server.url}/metrics").text
    for replica, one in server.replicas().items():
        assert f'loralab_disk_reads_total{{replica="{replica}"}} {one["disk_reads"]:.1f}' in text
    assert text.count("# TYPE vllm:lora_requests_info gauge") == 1


def changed_everywhere(server: Server, folder: Path) -> None:
    """What is loaded, or unloaded, is so in all replicas."""
    given = {"lora_name": "more", "lora_path": str(folder / "adapters" / "a0")}
    load, unload = f"{server.url}/v1/load_lora_adapter", f"{server.url}/v1/unload_lora_adapter"
    assert httpx.post(load, json=given).status_code == 200
    assert httpx.post(load, json=given).status_code == 400
    assert all("more" in [model.id for model in server.client.models.list()] for _ in range(6))
    assert server.ask("more")[0] == server.ask("a0")[0]
    assert httpx.post(unload, json={"lora_name": "more"}).status_code == 200
    for _ in range(4):
        with pytest.raises(openai.NotFoundError):
            server.ask("more")


def lost_and_replaced(server: Server, places: dict[str, str]) -> None:
    """A replica that dies ends its stream with an error; later requests are answered, and a new one comes."""
    before = server.replicas()
    victim = places["a2"]
    stream = server.client.completions.create(
        model="a2", prompt=PROMPT, max_tokens=100, temperature=0, stream=True
    )
    next(iter(stream))
    os.kill(before[victim]["pid"], signal.SIGKILL)
    with pytest.raises(openai.APIError, match="lost"):
        list(stream)
    for name in NAMES:
        assert server.ask(name)[1] != victim
    until(lambda: len(server.replicas()) == 2, 120, "a new replica")
    assert victim not in server.replicas()
    assert all(one["state"] == "ready" for one in server.replicas().values())


def ended(server: Server) -> None:
    """SIGTERM: what runs is finished, the log is written, and the process ends with 0."""
    stream = server.client.completions.create(
        model="a3", prompt=PROMPT, max_tokens=100, temperature=0, stream=True
    )
    next(iter(stream))
    server.process.send_signal(signal.SIGTERM)
    assert list(stream)[-1].choices[0].finish_reason in ("length", "stop")
    assert server.process.wait(60) == 0
    events = [json.loads(line) for line in server.lines]
    assert [one["event"] for one in events if one["event"] != "request"] == ["serving", "draining", "stopped"]
    requests = [one for one in events if one.get("route") == "/v1/completions"]
    assert len(requests) > 60
    assert all(one["replica"] for one in requests)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"replicas": 0}, ConfigError, "--replicas is 0; expected at least 1"),
        ({"model": "nowhere"}, ModelError, "nowhere: "),
        ({"api_keys": Path("none.toml")}, ConfigError, "none.toml: cannot be read"),
    ],
)
def test_what_is_wrong_is_said_before_ray_is_started(
    folder: Path, asked: dict[str, Any], error: type[Exception], said: str
) -> None:
    fleet = Fleet(**{"model": str(folder / "base"), "port": 0, **asked})
    with pytest.raises(error, match=said):
        fleets.run_fleet(fleet, print, print)


def test_a_port_in_use_is_one_line(folder: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        fleet = Fleet(model=str(folder / "base"), port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="cannot listen at"):
            fleets.run_fleet(fleet, print, print)


def test_without_ray_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "find_spec", lambda name: None if name == "ray" else object())
    with pytest.raises(ConfigError, match=r"needs ray: pip install 'loralab\[serve,scale\]'"):
        fleets.run_fleet(Fleet(model=str(folder / "base")), print, print)


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ("a", "a"),
        ("base:a", "a"),
        ("base", ""),
        ("a:0.7+b:0.3", "a:0.7+b:0.3"),
        (None, ""),
        (7, ""),
        ({}, ""),
    ],
)
def test_the_body_says_which_adapter(model: Any, adapter: str) -> None:
    assert adapter_of(json.dumps({"model": model}).encode(), "base") == adapter
    for body in (b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff"):
        assert adapter_of(body, "base") == ""


def test_series_of_many_become_one_text() -> None:
    text = (
        b'# HELP n_total N.\n# TYPE n_total counter\nn_total{a="x"} 3.0\n# HELP g G.\n# TYPE g gauge\ng 1.0\n'
    )
    lines = joined([("one", text), ("two", text)]).decode().splitlines()
    assert lines == [
        "# HELP n_total N.",
        "# TYPE n_total counter",
        'n_total{a="x",replica="one"} 3.0',
        'n_total{a="x",replica="two"} 3.0',
        "# HELP g G.",
        "# TYPE g gauge",
        'g{replica="one"} 1.0',
        'g{replica="two"} 1.0',
    ]
    assert joined([]) == b""
