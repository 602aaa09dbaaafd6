"""Adapters in memory: read from disk once, found by name or by what they are, the least used making room."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loralab.adapters.habits import Habits
from loralab.serving.errors import Full, UnknownModel
from loralab.serving.places import Fitted

__all__ = ["AdapterCache", "CacheStats", "Held", "Read"]


@dataclass
class CacheStats:
    """What the cache did so far."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    disk_reads: int = 0
    read_seconds: float = 0.0


@dataclass(eq=False)
class Held:
    """An adapter in memory, under one name."""

    name: str
    fitted: Fitted
    habits: Habits
    folder: Path | None
    pinned: bool = False
    explicit: bool = False
    """Whether somebody loaded it by name; such a one is not forgotten when its folder goes."""
    uses: int = 0
    """How many requests hold it now."""
    hits: int = 0
    gone: bool = False
    """Whether the name was unloaded or means another adapter now; it leaves with its last use."""


@dataclass(frozen=True, eq=False)
class Read:
    """What reading a folder gave."""

    fitted: Fitted
    habits: Habits
    folder: Path


@dataclass(eq=False)
class _Buffers:
    """The adapters of one content share their memory."""

    fitted: Fitted
    names: set[int] = field(default_factory=set)


class AdapterCache:
    """Adapters by name, in at most `max_bytes` of memory; the least recently used go first.

    Those that are pinned or in use stay. Two names of one content share the memory. `read` turns a name into
    an adapter; it runs in a thread of its own, once however many ask, and never while the cache is locked.
    """

    def __init__(
        self,
        read: Callable[[str], Read],
        max_bytes: int | None = None,
        *,
        dropped: Callable[[str], None] = lambda identity: None,
        readers: int = 2,
    ) -> None:
        self.max_bytes = max_bytes
        self.stats = CacheStats()
        self._read, self._dropped = read, dropped
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._leaving: list[Held] = []
        self._reading: dict[str, Future[Held]] = {}
        self._buffers: dict[str, _Buffers] = {}
        self._lock = threading.RLock()
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="loralab-read")
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def held(self) -> list[Held]:
        """Return what is in memory, the least recently used first."""
        with self._lock:
            return list(self._held.values())

    def peek(self, name: str) -> Held | None:
        """Return an adapter if it is in memory, without counting a use."""
        with self._lock:
            return self._held.get(name)

    def prefetch(self, name: str) -> "Future[Held]":
        """Begin to bring an adapter into memory, and return what will hold it."""
        with self._lock:
            held = self._held.get(name)
            if held is not None:
                self.stats.hits += 1
                held.hits += 1
                self._held.move_to_end(name)
                done: Future[Held] = Future()
                done.set_result(held)
                return done
            if name not in self._reading:
                self.stats.misses += 1
                self._reading[name] = self._pool.submit(self._bring, name)
            return self._reading[name]

    def acquire(self, name: str) -> Held:
        """Return an adapter that stays in memory until `release`, reading it where it is not there.

        Raises:
            UnknownModel, AdapterError, Full: as reading says; or everything in memory is in use.
        """
        while True:
            held = self.prefetch(name).result()
            with self._lock:
                if self._held.get(name) is held:
                    held.uses += 1
                    return held

    def release(self, held: Held) -> None:
        """Let go of what `acquire` gave."""
        with self._lock:
            held.uses -= 1
            if held.gone and not held.uses and held in self._leaving:
                self._leaving.remove(held)
                self._forget(held)

    @contextmanager
    def using(self, name: str) -> Iterator[Held]:
        """Hold an adapter for as long as the block lasts."""
        held = self.acquire(name)
        try:
            yield held
        finally:
            self.release(held)

    def put(self, name: str, read: Read, *, explicit: bool = False, pinned: bool = False) -> Held:
        """Keep an adapter under a name; what had the name before serves those who hold it, and nobody more.

        Raises:
            Full: all other adapters are pinned or in use.
        """
        with self._lock:
            before = self._held.get(name)
            kept = self._buffers.get(read.fitted.identity)
            if kept is None:
                self._make_room(read.fitted.nbytes, before)
                kept = self._buffers[read.fitted.identity] = _Buffers(read.fitted)
                self.bytes += read.fitted.nbytes
            held = Held(name, kept.fitted, read.habits, read.folder, pinned, explicit)
            kept.names.add(id(held))
            if before is not None:
                held.hits = before.hits
                if self._held.pop(name, None) is before:
                    self._drop(before)
            self._held[name] = held
            return held

    def remove(self, name: str) -> Held:
        """Forget a name; its memory goes when nobody uses it any more.

        Raises:
            UnknownModel: nothing of that name is in memory.
        """
        with self._lock:
            held = self._held.pop(name, None)
            if held is None:
                raise UnknownModel(f"adapter {name!r} is not loaded.")
            self._drop(held)
            return held

    def pin(self, name: str, pinned: bool) -> Held:
        """Say whether an adapter that is in memory must stay there.

        Raises:
            UnknownModel: nothing of that name is in memory.
        """
        with self._lock:
            held = self._held.get(name)
            if held is None:
                raise UnknownModel(f"adapter {name!r} is not loaded.")
            held.pinned = pinned
            return held

    def _bring(self, name: str) -> Held:
        try:
            began = time.perf_counter()
            read = self._read(name)
            with self._lock:
                self.stats.disk_reads += 1
                self.stats.read_seconds += time.perf_counter() - began
                return self.put(name, read)
        finally:
            with self._lock:
                self._reading.pop(name, None)

    def _make_room(self, wanted: int, before: Held | None) -> None:
        """Drop what is loose until `wanted` bytes are free, first what is to be replaced; or drop nothing."""
        if self.max_bytes is None or self.bytes + wanted <= self.max_bytes:
            return
        loose = [h for h in self._held.values() if not h.uses and (h is before or not h.pinned)]
        ids = {id(held) for held in loose}
        fixed = sum(kept.fitted.nbytes for kept in self._buffers.values() if not kept.names <= ids)
        if fixed + wanted > self.max_bytes:
            raise Full(
                f"the adapter takes {wanted:,} bytes; of {self.max_bytes:,} for adapters, {fixed:,} are "
                "pinned or in use."
            )
        for held in sorted(loose, key=lambda held: held is not before):
            if self.bytes + wanted <= self.max_bytes:
                return
            del self._held[held.name]
            self.stats.evictions += held is not before
            self._drop(held)

    def _drop(self, held: Held) -> None:
        held.gone = True
        if held.uses:
            self._leaving.append(held)
        else:
            self._forget(held)

    def _forget(self, held: Held) -> None:
        kept = self._buffers[held.fitted.identity]
        kept.names.discard(id(held))
        if not kept.names:
            del self._buffers[held.fitted.identity]
            self.bytes -= held.fitted.nbytes
            self._dropped(held.fitted.identity)
