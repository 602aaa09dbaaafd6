"""What the processes of a fleet are told."""

from dataclasses import dataclass, field
from pathlib import Path

from loralab.serving.engine import EngineSettings

__all__ = ["Fleet"]


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Replicas of one engine, and the address that they share."""

    model: str
    adapters: tuple[Path, ...] = ()
    """Folders of adapters or runs; every machine needs them at the same place."""
    replicas: int = 2
    engine: EngineSettings = field(default_factory=EngineSettings)
    """Of each replica."""
    dtype: str = "auto"
    allow_pickle: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    """0: a free one."""
    api_keys: Path | None = None
    max_body: int = 8 << 20
    max_tokens: int = 1024
    watch_seconds: float = 2.0
    deadline: float = 30.0
    """Seconds to finish in, once told to stop."""

    @property
    def base_name(self) -> str:
        """The name that a request gives to the base."""
        return Path(self.model).name
