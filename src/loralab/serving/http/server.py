"""A server process: its socket, its signals, and how it ends."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from loralab.errors import ConfigError
from loralab.serving.http.log import Log, event
from loralab.serving.http.site import Site

__all__ = ["Process", "bind"]

_LAST_FRAMES = 5
"""Seconds in which what was written must have gone out, when the engine has stopped."""
_KEEP_ALIVE = 75
"""Seconds that an idle connection stays: longer than clients keep it, lest they send into a closed one."""
_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address; port 0 is a free one.

    Raises:
        ConfigError: the port is in use, or the address is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        # From here on who connects waits, and another server is told that the port is in use.
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise _cannot_listen(host, port, error) from None
    return listening


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    reason = str(error.strerror or error).lower()
    return ConfigError(f"cannot listen at {host}:{port} ({reason}); another --port, or 0 for a free one?")


class _Server(uvicorn.Server):
    """uvicorn, with its signals left to `Process`."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._say_started = started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        if not self.should_exit:
            self._say_started()


@dataclass(frozen=True)
class Process:
    """Answers requests until a signal comes.

    SIGTERM and SIGINT: requests that come are refused with 503, those that run are finished; what is not done
    after `deadline` seconds ends with an error. A second signal ends the process at once.

    SIGHUP: the keys are read again.
    """

    app: FastAPI
    deadline: float
    log: Log

    def run(self, listening: socket.socket, started: Callable[[], None]) -> None:
        """Answer at a socket; `started` is called when it does. Returns when all is done."""
        asyncio.run(self._run(listening, started))

    async def _run(self, listening: socket.socket, started: Callable[[], None]) -> None:
        config = uvicorn.Config(
            self.app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_LAST_FRAMES,
            timeout_keep_alive=_KEEP_ALIVE,
            backlog=_BACKLOG,
        )
        server = _Server(config, started)
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, told, number)
        loop.add_signal_handler(signal.SIGHUP, self._reread)
        serving = asyncio.create_task(server.serve([listening]))
        waiting = asyncio.create_task(told.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        # The socket stays open meanwhile: who asks how the server is, or for more, is told that it stops.
        await run_in_threadpool(self._site.engine.close, self.deadline)
        server.should_exit = True
        await serving
        self.log(event("stopped"))

    @property
    def _site(self) -> Site:
        site: Site = self.app.state.site
        return site

    def _stop(self, told: asyncio.Event, number: int) -> None:
        if told.is_set():
            os._exit(128 + number)
        running = len(self._site.engine.running) + len(self._site.engine.waiting)
        self.log(event("draining", running=running, deadline=self.deadline))
        self._site.engine.drain()
        told.set()

    def _reread(self) -> None:
        keys = self._site.settings.keys
        if keys is None:
            return
        try:
            keys.reread()
        except ConfigError as error:
            self.log(event("keys", "error", error=f"{error} The keys are as they were."))
            return
        self.log(event("keys", path=str(keys.path), tenants=keys.tenants))
