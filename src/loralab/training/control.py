"""What another process asks of a running one: ``control.json`` in its folder."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from loralab.errors import ConfigError
from loralab.files import write_json

__all__ = ["Control", "Wishes"]

FILE = "control.json"


@dataclass(frozen=True)
class Wishes:
    """What is asked of a run."""

    stop: bool = False
    """Save and end, to be resumed later."""
    pause: bool = False
    """Wait, with everything kept in memory."""
    saves: int = 0
    """How many times a checkpoint was asked for."""
    stop_at_loss: float | None = None
    """In place of the setting of that name."""


class Control:
    """Reads and writes the wishes of one run."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._seen: tuple[int, int] | None = None
        self._wishes = Wishes()

    def read(self) -> Wishes:
        """Return what is asked now; the file is read again only when it has changed."""
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp != self._seen:
                self._wishes = Wishes(**json.loads(self._path.read_text(encoding="utf8")))
                self._seen = stamp
        except FileNotFoundError:
            return Wishes()
        except (OSError, ValueError, TypeError):
            # Written by hand, perhaps: what was asked before holds.
            self._seen = None
        return self._wishes

    def ask(self, **changes: object) -> Wishes:
        """Change what is asked.

        Raises:
            ConfigError: there is no such wish.
        """
        unknown = changes.keys() - asdict(Wishes()).keys()
        if unknown:
            raise ConfigError(f"a run knows no {sorted(unknown)[0]!r}.")
        self._wishes = replace(self.read(), **changes)  # type: ignore[arg-type]
        write_json(self._path, asdict(self._wishes))
        return self._wishes

    def begin(self) -> Wishes:
        """Forget an old stop or pause, which were for another sitting, and return what is left."""
        return self.ask(stop=False, pause=False) if self._path.exists() else Wishes()
