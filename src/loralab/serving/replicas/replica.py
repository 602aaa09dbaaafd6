"""An engine in a process of its own: the server's application, asked through Ray instead of a socket."""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

from ray import serve
from starlette.concurrency import run_in_threadpool
from starlette.types import Message

from loralab.errors import ConfigError, LoralabError
from loralab.models import load_base
from loralab.serving.engine import Engine
from loralab.serving.errors import ServingError
from loralab.serving.http.app import HttpSettings, make_app
from loralab.serving.http.keys import Keys
from loralab.serving.http.log import event
from loralab.serving.http.metrics import Metrics
from loralab.serving.replicas.settings import Fleet

__all__ = ["Replica"]

_LINES = 10_000
"""So many lines of the log are kept until they are asked for."""


class Replica:
    """One engine of a fleet. `held` is made multiplexed by who deploys it: it tells Ray what is here."""

    # Ray awaits it.
    async def __init__(self, fleet: Fleet) -> None:  # type: ignore[misc]
        self.id: str = serve.get_replica_context().replica_tag
        self.fault = ""
        self._log: deque[dict[str, object]] = deque()
        self._lost = 0
        try:
            await run_in_threadpool(self._begin, fleet)
        except LoralabError as error:
            # Trying again would not help: whoever started the fleet asks, and says it.
            self.fault = str(error)
            return
        self._life = self.app.router.lifespan_context(self.app)
        await self._life.__aenter__()

    def _begin(self, fleet: Fleet) -> None:
        self.metrics_kept = Metrics()
        self._keys = Keys(fleet.api_keys) if fleet.api_keys else None
        base = load_base(fleet.model, fleet.dtype, allow_pickle=fleet.allow_pickle)
        self.engine = Engine(base, fleet.adapters, fleet.engine, self.metrics_kept)
        settings = HttpSettings(
            keys=self._keys,
            max_body=fleet.max_body,
            max_tokens=fleet.max_tokens,
            watch_seconds=fleet.watch_seconds,
            log=self._note,
        )
        self.app = make_app(self.engine, settings, self.metrics_kept)
        self.engine.start()

    async def held(self, adapter: str) -> str:
        """Return the adapter's name, if it is one; the engine reads it when it is asked.

        Raises:
            ServingError: there is none.
        """
        return self.engine.library.resolve(adapter)

    async def answer(self, asked: Mapping[str, Any], body: bytes) -> AsyncIterator[Message]:
        """Yield the ASGI messages of an answer as they come; who stops listening ends it."""
        adapter = serve.get_multiplexed_model_id()
        if adapter:
            # Where there is none, the route says so in the client's words.
            with contextlib.suppress(ServingError):
                await self.held(adapter)
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        gone = asyncio.Event()
        running = asyncio.create_task(self._run(asked, body, messages, gone))
        try:
            while (message := await messages.get()) is not None:
                yield message
            await running
        finally:
            gone.set()

    async def whole(self, asked: Mapping[str, Any], body: bytes) -> list[Message]:
        """Return all messages of an answer."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        await self._run(asked, body, messages, asyncio.Event())
        found = [messages.get_nowait() for _ in range(messages.qsize())]
        return [message for message in found if message is not None]

    async def describe(self) -> dict[str, Any]:
        """Return how it is."""
        if self.fault:
            return {"id": self.id, "pid": os.getpid(), "state": "dead", "fault": self.fault}
        engine = self.engine
        running, waiting = len(engine.running), len(engine.waiting)
        return {
            "id": self.id,
            "pid": os.getpid(),
            "state": engine.state,
            "running": running,
            "waiting": waiting,
            "disk_reads": engine.cache.stats.disk_reads,
        }

    async def metrics(self) -> tuple[str, bytes]:
        """Return its name and its series."""
        return self.id, await run_in_threadpool(self.metrics_kept.text)

    async def lines(self) -> list[dict[str, object]]:
        """Return what the log has since this was last asked."""
        found = [self._log.popleft() for _ in range(len(self._log))]
        if self._lost:
            found.append(event("log", "warning", replica=self.id, lines_lost=self._lost))
            self._lost = 0
        return found

    async def reread(self) -> None:
        """Read the keys again."""
        if self._keys is None:
            return
        try:
            self._keys.reread()
        except ConfigError as error:
            self._note(event("keys", "error", error=f"{error} The keys are as they were."))
            return
        self._note(event("keys", path=str(self._keys.path)))

    async def drain(self) -> None:
        """Take no new requests."""
        self.engine.drain()

    async def finish(self, deadline: float) -> None:
        """End what is left after `deadline` seconds."""
        await run_in_threadpool(self.engine.close, deadline)

    async def check_health(self) -> None:
        """Tell Ray to replace this process if its engine has died. Raises RuntimeError then."""
        if not self.fault and self.engine.state == "dead":
            raise RuntimeError("the engine is dead")

    async def _run(
        self,
        asked: Mapping[str, Any],
        body: bytes,
        messages: "asyncio.Queue[Message | None]",
        gone: asyncio.Event,
    ) -> None:
        """Put the application's messages into the queue, and None behind the last."""
        read = False

        async def receive() -> Message:
            nonlocal read
            if read:
                await gone.wait()
                return {"type": "http.disconnect"}
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-replica", self.id.encode())]
            await messages.put(message)

        try:
            scope = {**asked, "asgi": {"version": "3.0"}, "client": None, "root_path": ""}
            await self.app(scope, receive, send)
        finally:
            await messages.put(None)

    def _note(self, line: dict[str, object]) -> None:
        if len(self._log) >= _LINES:
            self._lost += 1
        else:
            self._log.append({**line, "replica": self.id})
