"""What ``loralab serve`` is told, and a server made of it."""

import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from loralab.cli.output import Screen
from loralab.errors import ConfigError

__all__ = ["Serving", "serve"]

_UNITS = {"": 0, "b": 0, "kb": 3, "mb": 6, "gb": 9, "tb": 12}
"""Powers of ten."""
_COUNTS = (
    *("slots", "max_rank", "max_running", "max_waiting", "max_tokens", "batch_tokens", "cache_tokens"),
    "replicas",
)
_LOCAL = ("127.0.0.1", "::1", "localhost")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Serving:
    """What is served, where, and with how much of the machine."""

    model: str
    """Base model: a folder, a hub id, or "demo"."""
    adapters: Annotated[list[Path] | None, Parameter(consume_multiple=True, negative=())] = None
    """Folders of adapters or of runs; also one adapter or one run. They are watched: what is new appears."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of this machine's."""
    port: int = 8000
    """Port; 0 for a free one."""
    api_keys: Path | None = None
    """TOML file of tenants and their keys. Left out, anyone may ask anything."""
    deadline: float = 30.0
    """Seconds to finish in, once told to stop."""
    dtype: str = "auto"
    """Precision of the base: auto, float32, bfloat16, float16."""
    max_ram: str | None = None
    """Most memory for adapters, such as 8GB; left out, no bound."""
    slots: int = 32
    """How many adapters run in one batch."""
    max_rank: int = 256
    """Highest rank of an adapter."""
    max_running: int = 64
    """Requests in one batch."""
    max_waiting: int = 1024
    """Requests that may wait; more are refused with 429."""
    max_tokens: int = 1024
    """Longest answer to a chat that does not say how long."""
    max_body: str = "8MB"
    """Largest body of a request."""
    batch_tokens: int = 512
    """Tokens of one step."""
    cache_tokens: int = 16_384
    """Tokens whose keys and values are held, of all requests together."""
    merging: Literal["auto", "never"] = "auto"
    """Whether an adapter that is alone is merged into the weights."""
    backend: Literal["auto", "continuous", "plain"] = "auto"
    """What runs the model: auto takes continuous batching where it gives the model's own answers."""
    replicas: int = 1
    """Copies of the base, each in a process of its own, on Ray (pip install 'loralab[serve,scale]')."""
    allow_pickle: Annotated[bool, Parameter(negative=())] = False
    """Load a base that is a pickle file."""

    def check(self) -> None:
        """Refuse what cannot be meant. Raises ConfigError."""
        missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
        if missing:
            raise ConfigError(f"serve needs {', '.join(missing)}: pip install 'loralab[serve]'.")
        for folder in self.adapters or ():
            if not folder.is_dir():
                raise ConfigError(f"--adapters {folder}: there is no such folder.")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"--port is {self.port}; expected 0 (a free one) to 65535.")
        if not self.deadline >= 0:
            raise ConfigError(f"--deadline is {self.deadline}; expected 0 or more seconds.")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is {getattr(self, name)}; expected at least 1.")


def read_size(text: str, flag: str) -> int:
    """Return a number of bytes: "8GB", "500 MB", "4096".

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in _UNITS:
        raise ConfigError(f"{flag} is {text!r}; expected a size such as 8GB or 500MB.")
    count = int(float(found[1]) * 10 ** _UNITS[found[2]])
    if not count:
        raise ConfigError(f"{flag} is {text!r}; expected more than nothing.")
    return count


def serve(asked: Serving, screen: Screen) -> None:
    """Serve until a signal comes. Raises as the parts do, before it begins."""
    asked.check()
    max_ram = None if asked.max_ram is None else read_size(asked.max_ram, "--max-ram")
    max_body = read_size(asked.max_body, "--max-body")

    from loralab.serving.engine import EngineSettings
    from loralab.serving.http.log import plain

    settings = EngineSettings(
        slots=asked.slots,
        max_ram=max_ram,
        max_rank=asked.max_rank,
        max_running=asked.max_running,
        max_waiting=asked.max_waiting,
        batch_tokens=asked.batch_tokens,
        cache_tokens=asked.cache_tokens,
        merging=asked.merging,
        backend=asked.backend,
    )

    def log(line: dict[str, object]) -> None:
        screen.data(line)
        screen.say(plain(line))

    one_or_many = _serve_here if asked.replicas == 1 else _serve_replicas
    one_or_many(asked, settings, max_body, screen, log)


def _serve_here(asked: Serving, settings: Any, max_body: int, screen: Screen, log: Any) -> None:
    """Serve from this process."""
    from loralab.models import load_base
    from loralab.serving.engine import Engine
    from loralab.serving.http.app import HttpSettings, make_app
    from loralab.serving.http.keys import Keys
    from loralab.serving.http.metrics import Metrics
    from loralab.serving.http.server import Process, bind

    keys = Keys(asked.api_keys) if asked.api_keys else None
    metrics = Metrics()
    # A port that is in use is told before the base is read, which may take minutes.
    with bind(asked.host, asked.port) as listening:
        base = load_base(asked.model, asked.dtype, allow_pickle=asked.allow_pickle)
        engine = Engine(base, asked.adapters or (), settings, metrics)
        engine.start()
        given = HttpSettings(keys=keys, max_body=max_body, max_tokens=asked.max_tokens, log=log)
        process = Process(make_app(engine, given, metrics), asked.deadline, log)
        address = _address(listening.getsockname(), asked.host)
        process.run(listening, lambda: _begin(screen, asked, engine, keys, address))


def _serve_replicas(asked: Serving, settings: Any, max_body: int, screen: Screen, log: Any) -> None:
    """Serve from several processes, on Ray."""
    from loralab.serving.replicas.fleet import run_fleet
    from loralab.serving.replicas.settings import Fleet

    fleet = Fleet(
        model=asked.model,
        adapters=tuple(asked.adapters or ()),
        replicas=asked.replicas,
        engine=settings,
        dtype=asked.dtype,
        allow_pickle=asked.allow_pickle,
        host=asked.host,
        port=asked.port,
        api_keys=asked.api_keys,
        max_body=max_body,
        max_tokens=asked.max_tokens,
        deadline=asked.deadline,
    )

    def begun(host: str, port: int, replicas: list[dict[str, Any]]) -> None:
        url = _address((host, port), host)
        screen.data({"event": "serving", "url": url, "base": fleet.base_name, "replicas": len(replicas)})
        screen.fact("serving", f"{fleet.base_name} in {len(replicas)} replicas at {url}")

    run_fleet(fleet, log, begun)


def _begin(screen: Screen, asked: Serving, engine: Any, keys: Any, address: str) -> None:
    """Say where the server is, what to type, and what to mind."""
    names = [entry.name for entry in engine.library.entries()]
    screen.data({"event": "serving", "url": address, "base": engine.base_name, "adapters": len(names)})
    count = f"{len(names)} adapter{'' if len(names) == 1 else 's'}"
    screen.fact("serving", f"{engine.base_name} and {count} at {address}")
    message = {"role": "user", "content": "Hello."}
    body = json.dumps({"model": names[0] if names else engine.base_name, "messages": [message]})
    headers = ["content-type: application/json", *(["authorization: Bearer KEY"] if keys else [])]
    given = " ".join(f"-H '{header}'" for header in headers)
    screen.fact("try", f"curl {address}/v1/chat/completions {given} -d '{body}'")
    if keys is None and asked.host not in _LOCAL:
        screen.fact("warning", f"no --api-keys: whoever reaches {asked.host} may ask, load and unload")
    if keys is not None and keys.readable_by_others:
        screen.fact("warning", f"others than you can read {keys.path}: chmod 600 {keys.path}")


def _address(name: tuple[Any, ...], host: str) -> str:
    shown = "127.0.0.1" if host in ("0.0.0.0", "") else f"[{name[0]}]" if ":" in str(name[0]) else host
    return f"http://{shown}:{name[1]}"
