"""One line a request: what was asked, of whom, and how long it took."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

__all__ = ["Log", "Record", "event", "plain", "say_nothing"]

Log = Callable[[dict[str, object]], None]
"""Takes the fields of one line."""


@dataclass
class Record:
    """What is known of a request. Times are in seconds, from its arrival."""

    id: str
    method: str
    route: str
    status: int = 0
    model: str = ""
    """As the client named it."""
    adapter: str = ""
    """The adapter, or stack, that answers; "" for the base."""
    digest: str = ""
    tenant: str = ""
    mode: str = ""
    stream: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    total_seconds: float = 0.0
    error: str = ""
    known: bool = field(default=False, repr=False)
    """Whether there is a base or an adapter of the name."""
    _began: float = field(default_factory=time.perf_counter, repr=False)

    @property
    def elapsed(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self._began

    def fields(self) -> dict[str, object]:
        """Return the line's fields; what does not apply is left out."""
        level = "error" if self.status >= 500 else "warning" if self.status >= 400 or self.error else "info"
        line: dict[str, object] = {"time": _now(), "level": level, "event": "request"}
        for name, value in asdict(self).items():
            if name in ("known", "_began") or value in ("", None, False):
                continue
            line[name] = round(value, 6) if isinstance(value, float) else value
        if not self.model:
            for name in ("prompt_tokens", "completion_tokens"):
                line.pop(name, None)
        return line


def event(name: str, level: str = "info", **fields: object) -> dict[str, object]:
    """Return a line about the server itself."""
    return {"time": _now(), "level": level, "event": name, **fields}


def say_nothing(line: dict[str, object]) -> None:
    """Write no log."""


def plain(line: dict[str, object]) -> str:
    """Return a line for a person."""
    if line["event"] != "request":
        rest = "  ".join(f"{name} {value}" for name, value in line.items() if name not in ("time", "level"))
        return f"{line['time']}  {rest.removeprefix('event ')}"
    parts = [f"{line['time']}  {line['status']} {line['method']} {line['route']}"]
    if "model" in line:
        parts.append(f"model {line['model']}")
        parts.append(f"tokens {line.get('prompt_tokens', 0)}+{line.get('completion_tokens', 0)}")
    for name, label in (
        ("queue_seconds", "queue"),
        ("first_token_seconds", "first"),
        ("total_seconds", "total"),
    ):
        if name in line:
            parts.append(f"{label} {float(str(line[name])):.3f} s")
    parts += [f"{name} {line[name]}" for name in ("tenant", "id", "error") if name in line]
    # A client's words must not make a second line.
    return "".join(letter if letter.isprintable() else " " for letter in "  ".join(parts))


def _now() -> str:
    seconds = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"
