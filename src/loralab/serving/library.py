"""The adapters that a server can be asked for: found by name in folders, read once, held, stacked.

Nothing here runs a model.
"""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loralab.adapters.habits import Habits
from loralab.errors import AdapterError
from loralab.serving.cache import AdapterCache, Held, Read
from loralab.serving.errors import BadRequest, Conflict, UnknownModel
from loralab.serving.names import canonical, parse
from loralab.serving.places import Fitted, Places, stacked
from loralab.serving.reading import Roots

__all__ = ["Entry", "Library"]

Where = Literal["disk", "ram", "slot", "merged"]
_STACKS = 16
"""So many weighted stacks are kept."""


@dataclass(frozen=True)
class Entry:
    """An adapter, as a list of them shows it."""

    name: str
    where: Where
    identity: str = ""
    bytes: int = 0
    rank: int = 0
    pinned: bool = False
    hits: int = 0
    in_use: int = 0
    path: Path | None = None


class Library:
    """The adapters of some folders, and those that were loaded by name; for any thread.

    `base_names` are what the base is called.
    """

    def __init__(
        self, roots: Roots, places: Places, base_names: Sequence[str], max_ram: int | None, *, pinned: bool
    ) -> None:
        self.roots = roots
        self.scales: dict[str, float] = {}
        """Adapters that run, so weighted, where a request names the base; llama.cpp's way."""
        self.dropped: Callable[[str], None] = lambda identity: None
        """Told the identity of what left the memory."""
        self.read: Callable[[str, int, float], None] = lambda name, nbytes, seconds: None
        """Told what was read, its bytes, and the seconds."""
        self.where: Callable[[str], Where] = lambda identity: "ram"
        """Says where an adapter that is in memory is besides."""
        self.cache = AdapterCache(self._read, max_ram, dropped=lambda identity: self.dropped(identity))
        self._places, self._base_names, self._pinned = places, tuple(base_names), pinned
        self._lock = threading.RLock()
        self._hidden: set[str] = set()
        self._folders: dict[str, Path] = {}
        self._loaded: dict[str, Path] = {}
        """Adapters that were loaded under a name that is not their folder's."""
        self._seen: dict[str, tuple[int, ...]] = {}
        self._stacks: OrderedDict[str, Fitted] = OrderedDict()
        self.rescan()

    def resolve(self, model: str) -> str:
        """Return the one way to write a model's name: "" for the base, an adapter's name, or a stack.

        Raises:
            UnknownModel: the base has another name and there is no such adapter.
        """
        if model in ("", *self._base_names):
            return ""
        for name in self._base_names:
            model = model.removeprefix(f"{name}:")
        if self._knows(model):
            return model
        parts = parse(model)
        for name, _ in parts:
            if not self._knows(name):
                raise UnknownModel(f"there is no model or adapter {name!r} here.")
        return canonical(parts)

    def entries(self) -> list[Entry]:
        """Return the adapters that can be asked for, by name."""
        held = {one.name: one for one in self.cache.held()}
        names = sorted({*held, *self._folders, *self._loaded} - self._hidden)
        return [self._entry(name, held.get(name)) for name in names]

    def load(
        self, name: str, folder: str | Path | None = None, *, replace: bool = False, pin: bool = False
    ) -> Entry:
        """Bring an adapter into memory, from its folder among the roots or another one within them.

        Raises:
            Conflict: one of that name is in memory, and `replace` is False.
            UnknownModel, Forbidden, AdapterError, TooLarge, Full: it is not there or cannot be used.
            BadRequest: the name is none.
        """
        if name in ("", *self._base_names) or any(mark in name for mark in "/\\+:\0"):
            raise BadRequest(f"{name!r} cannot be the name of an adapter.")
        with self._lock:
            if self.cache.peek(name) is not None and not replace:
                raise Conflict(f"adapter {name!r} is loaded already.")
        where = self.roots.find(name) if folder is None else self.roots.admit(folder)
        read = self._read_folder(name, where)
        with self._lock:
            if self.cache.peek(name) is not None and not replace:
                raise Conflict(f"adapter {name!r} is loaded already.")
            self.cache.stats.disk_reads += 1
            held = self.cache.put(name, read, explicit=True, pinned=pin)
            self._loaded.pop(name, None)
            if where != self._folders.get(name):
                self._loaded[name] = where
            self._hidden.discard(name)
            return self._entry(name, held)

    def unload(self, name: str) -> None:
        """Forget an adapter until it is loaded again; requests that run with it go on.

        Raises:
            UnknownModel: there is none of that name.
        """
        with self._lock:
            if not self._knows(name):
                raise UnknownModel(f"there is no adapter {name!r} here.")
            if self.cache.peek(name) is not None:
                self.cache.remove(name)
            self._loaded.pop(name, None)
            self._hidden.add(name)
            self._stacks.clear()

    def pin(self, name: str, pinned: bool = True) -> Entry:
        """Keep an adapter in memory whatever else is asked for, or let it go again; it is read if need be.

        Raises:
            UnknownModel, AdapterError, Forbidden, TooLarge, Full: it is not there or cannot be used.
        """
        if not self._knows(name):
            raise UnknownModel(f"there is no adapter {name!r} here.")
        with self.cache.using(name):
            return self._entry(name, self.cache.pin(name, pinned))

    def rescan(self) -> list[str]:
        """Look at the roots again, and return the names that are new, changed or gone.

        One that changed is read again with its next request. One that is gone from disk stays in memory as
        long as it is there.
        """
        folders = self.roots.names()
        seen = {name: _signature(path) for name, path in folders.items()}
        with self._lock:
            differs = {name for name in {*seen, *self._seen} if seen.get(name) != self._seen.get(name)}
            for name in differs & folders.keys() & self._seen.keys():
                if self.cache.peek(name) is not None:
                    self.cache.remove(name)
            self._hidden -= differs
            self._folders, self._seen = folders, seen
            if differs:
                self._stacks.clear()
        return sorted(differs)

    def hold(self, model: str, held: contextlib.ExitStack) -> tuple[Fitted | None, Habits]:
        """Return what a model's name stands for; `held` keeps it in memory."""
        name = self.resolve(model)
        parts = [(name, 1.0)] if self._knows(name) else parse(name) if name else list(self.scales.items())
        parts = [(one, weight) for one, weight in parts if weight or name]
        if not parts:
            return None, Habits()
        adapters = [(held.enter_context(self.cache.using(one)), weight) for one, weight in parts]
        habits = adapters[0][0].habits if name else Habits()
        if len(adapters) == 1 and adapters[0][1] == 1.0:
            return adapters[0][0].fitted, habits
        return self._stack(canonical(parts), adapters), habits

    def _stack(self, name: str, adapters: Sequence[tuple[Held, float]]) -> Fitted:
        told = " ".join(f"{one.fitted.identity}*{weight!r}" for one, weight in adapters)
        with self._lock:
            found = self._stacks.get(told)
        if found is None:
            found = stacked([(one.fitted, weight) for one, weight in adapters], name)
            for path, part in found.parts.items():
                self._places.check_range(path, part, name)
            if found.rank > (most := self.roots.limits.rank):
                raise AdapterError(f"the stack {name!r} has rank {found.rank}; up to {most} is served.")
        with self._lock:
            self._stacks[told] = found
            self._stacks.move_to_end(told)
            while len(self._stacks) > _STACKS:
                self._stacks.popitem(last=False)
        return found

    def _knows(self, name: str) -> bool:
        known = name in self._folders or name in self._loaded or self.cache.peek(name) is not None
        return known and name not in self._hidden

    def _read(self, name: str) -> Read:
        began = time.perf_counter()
        folder = self._loaded.get(name) or self._folders.get(name) or self.roots.find(name)
        read = self._read_folder(name, folder)
        self.read(name, read.fitted.nbytes, time.perf_counter() - began)
        return read

    def _read_folder(self, name: str, folder: Path) -> Read:
        fitted = self._places.fit(self.roots.read(folder), name, self._pinned)
        return Read(fitted, self.roots.habits(folder), folder)

    def _entry(self, name: str, held: Held | None) -> Entry:
        if held is None:
            return Entry(name, "disk", path=self._loaded.get(name) or self._folders.get(name))
        fitted = held.fitted
        return Entry(
            name,
            self.where(fitted.identity),
            fitted.identity,
            fitted.nbytes,
            fitted.rank,
            held.pinned,
            held.hits,
            held.uses,
            held.folder,
        )


def _signature(folder: Path) -> tuple[int, ...]:
    """Return what changes when an adapter is written anew."""
    found: list[int] = []
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with contextlib.suppress(OSError):
            status = (folder / name).stat()
            found += [status.st_mtime_ns, status.st_size, status.st_ino]
    return tuple(found)
