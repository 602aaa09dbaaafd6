"""A tiny base with three adapters, and real servers over it: uvicorn in a thread, at a free port."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

import uvicorn
from openai import OpenAI

from loralab.serving.engine import Engine, EngineSettings
from loralab.serving.http.app import HttpSettings, make_app
from loralab.serving.http.metrics import Metrics
from loralab.serving.http.server import bind

ADAPTERS = {"poet": 4, "pirate": 8, "judge": 12}
"""Names and ranks."""
SMALL = EngineSettings(batch_tokens=128, cache_tokens=8192, backend="continuous")


def write_adapter(base: Path, folder: Path, rank: int, seed: int) -> Path:
    """Write an adapter that changes the base's words, and return its folder."""
    import torch

    from loralab import LoraConfig, get_peft_model
    from loralab.models import load_base

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear")
    model = get_peft_model(load_base(str(base), "float32").model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shop(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base that chats, of 4,096 positions, and "adapters"."""
    folder = tmp_path_factory.mktemp("shop")
    tiny.write_base(folder / "tiny", chat=True)
    config = folder / "tiny" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 4096}))
    for seed, (name, rank) in enumerate(ADAPTERS.items()):
        write_adapter(folder / "tiny", folder / "adapters" / name, rank, seed)
    return folder


@dataclass
class Server:
    """A server, and what asks it."""

    url: str
    engine: Engine
    app: Any = None
    log: list[dict[str, object]] = field(default_factory=list)
    key: str = "none"

    @property
    def http(self) -> httpx.Client:
        """A client; every test closes its own by using it in a `with`."""
        return httpx.Client(base_url=self.url, timeout=60, headers={"authorization": f"Bearer {self.key}"})

    @property
    def openai(self) -> OpenAI:
        """OpenAI's client."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=60)

    def post(self, path: str, body: Any = None, key: str | None = None) -> httpx.Response:
        """Send JSON and return what came back."""
        with self.http as http:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            return http.post(path, json=body, headers=headers)

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        """Return what is at a path."""
        with self.http as http:
            return http.get(path, headers={} if key is None else {"authorization": f"Bearer {key}"})

    def write(self, **fields: Any) -> httpx.Response:
        """Have a text written, the same each time."""
        body = {"model": "tiny", "prompt": "the little dog", "temperature": 0, "max_tokens": 8, **fields}
        return self.post("/v1/completions", body)

    def text(self, **fields: Any) -> str:
        """Return such a text."""
        reply = self.write(**fields)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["choices"][0]["text"])

    def series(self, name: str) -> dict[str, float]:
        """Return the metrics whose name begins so, by name and labels."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name)]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


Serve = Callable[..., contextlib.AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def serve(shop: Path) -> Serve:
    """Return what starts a server over the shop, or other roots, and stops it at the end of its `with`."""
    from loralab.models import load_base

    @contextlib.contextmanager
    def start(
        roots: list[Path] | None = None,
        engine: EngineSettings = SMALL,
        send_buffer: int | None = None,
        **settings: Any,
    ) -> Iterator[Server]:
        metrics = Metrics()
        base = load_base(str(shop / "tiny"), "float32")
        running = Engine(base, roots or [shop / "adapters"], engine, metrics)
        running.start()
        listening = bind("127.0.0.1", 0)
        if send_buffer is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = Server(f"http://127.0.0.1:{listening.getsockname()[1]}", running)
        server.app = app = make_app(running, HttpSettings(log=server.log.append, **settings), metrics)
        web = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
        thread = threading.Thread(target=web.run, args=([listening],))
        thread.start()
        try:
            yield server
        finally:
            running.close(deadline=0)
            web.should_exit = True
            thread.join(30)
            listening.close()
        assert not thread.is_alive()

    return start


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[Server]:
    """A server that tests share; they leave it as it was."""
    with serve(watch_seconds=0.2) as running:
        yield running
