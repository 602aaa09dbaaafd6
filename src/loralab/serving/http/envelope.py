"""What is around every request: its id, the limit on its size, and the line it leaves in the log."""

import re
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loralab.serving.http.log import Log, Record
from loralab.serving.http.metrics import Metrics

__all__ = ["Envelope"]

_ID = re.compile(r"[!-~]{1,128}")
"""An id of the client's that is safe in a header and in a log."""


class Envelope:
    """ASGI middleware. It is plain ASGI, so that streams pass and a client that goes is noticed."""

    def __init__(self, app: ASGIApp, *, max_body: int, log: Log, metrics: Metrics) -> None:
        self.app = app
        self.max_body = max_body
        self.log = log
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and take note of how it ended."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        record = Record(
            id=given if _ID.fullmatch(given) else uuid.uuid4().hex,
            method=scope["method"],
            route=scope["path"],
        )
        scope.setdefault("state", {})["record"] = record

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.id
            await send(message)

        try:
            await self.app(scope, _limited(receive, headers, self.max_body), send_on)
        finally:
            record.status = record.status or 500
            record.total_seconds = record.elapsed
            self._note(scope, record)

    def _note(self, scope: MutableMapping[str, Any], record: Record) -> None:
        route = scope.get("route")
        record.route = getattr(route, "path", record.route)
        self.metrics.add(record)
        # Probes come every few seconds and would be most of the log.
        quiet = record.route.startswith(("/health", "/metrics")) and record.status < 400
        if not quiet:
            self.log(record.fields())


def _limited(receive: Receive, headers: Headers, limit: int) -> Receive:
    """Return a `receive` that refuses a body of more than `limit` bytes, before it is in memory."""
    declared = headers.get("content-length", "")
    taken = 0

    async def receive_some() -> Message:
        nonlocal taken
        if declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise _too_large(limit)
        return message

    return receive_some


def _too_large(limit: int) -> HTTPException:
    # The rest of the body is not read, so the connection cannot be used again.
    return HTTPException(413, f"the body is larger than {limit} bytes.", headers={"connection": "close"})
