"""The address of a fleet: an ASGI application that has no model, and passes requests on to those that do."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send

from loralab.serving.errors import Overloaded, ServingError, TooLarge, Unavailable
from loralab.serving.http.errors import error_body
from loralab.serving.replicas.affinity import adapter_of
from loralab.serving.replicas.scrape import joined

__all__ = ["Front", "make_front"]

_WRITES = ("/v1/chat/completions", "/v1/completions")
"""What is asked of one replica; any other POST changes something, and is asked of all."""
_KEPT = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")
"""What of a scope goes to a replica."""
_LOST = (RayError, DeploymentUnavailableError)
_SHORT = 5.0
"""Seconds for a replica to say how it is."""


def make_front(engines: Any, base: str, max_body: int) -> Starlette:
    """Return the application over the handle of the replicas' deployment; `base` is the base's name."""
    front = Front(engines, base, max_body)
    health = [Route(path, front.health) for path in ("/health", "/health/ready", "/health/live")]
    return Starlette(routes=[*health, Route("/metrics", front.metrics), Mount("/", app=front)])


class Front:
    """Sends a request for text to the replica that has its adapter, and one that changes adapters to all."""

    def __init__(self, engines: Any, base: str, max_body: int) -> None:
        self.engines = engines
        self.base = base
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        asked = {name: scope[name] for name in _KEPT if name in scope}
        try:
            body = await self._body(receive)
            if scope["method"] == "POST" and scope["path"] not in _WRITES:
                await self._of_all(asked, body, send)
            else:
                await self._of_one(asked, body, receive, send)
        except ServingError as error:
            headers = {} if error.retry_after is None else {"retry-after": f"{error.retry_after:.0f}"}
            await JSONResponse(error_body(error), error.status, headers)(scope, receive, send)

    async def health(self, request: Request) -> Response:
        """Tell how each replica is: 200 as long as one takes requests."""
        told = [one for one in await self._everywhere("describe") if isinstance(one, dict)]
        live = request.url.path.endswith("/live")
        states = [
            one["state"] for one in told if one["state"] == "ready" or (live and one["state"] != "dead")
        ]
        if not states:
            return JSONResponse(error_body(Unavailable("no replica takes requests.")), 503)
        status = "ready" if "ready" in states else states[0]
        return JSONResponse({"status": status, "replicas": told})

    async def metrics(self, request: Request) -> Response:
        """Tell every replica's series, each with its label."""
        texts = [one for one in await self._everywhere("metrics") if isinstance(one, tuple)]
        return Response(joined(texts), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _body(self, receive: Receive) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body:
                raise TooLarge(f"the body is larger than {self.max_body} bytes.")
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _of_one(self, asked: Mapping[str, Any], body: bytes, receive: Receive, send: Send) -> None:
        """Pass one replica's answer on as it comes; one that dies before it said a word is replaced once."""
        name = adapter_of(body, self.base) if asked["path"] in _WRITES else ""
        for attempt in range(2):
            passing = _Passing(send)
            try:
                await self._pass(name, asked, body, receive, passing)
                return
            except BackPressureError:
                raise Overloaded("all replicas have as much to do as they take; try again later.") from None
            except (RequestCancelledError, TaskCancelledError):
                return
            except _LOST as error:
                if passing.began:
                    await passing.break_off()
                    return
                if attempt:
                    kind = type(error).__name__
                    raise Unavailable(f"the replica was lost before it answered ({kind}).") from None

    async def _pass(
        self, name: str, asked: Mapping[str, Any], body: bytes, receive: Receive, passing: "_Passing"
    ) -> None:
        handle = self.engines.options(stream=True, multiplexed_model_id=name)
        stream = handle.answer.remote(asked, body)
        gone = asyncio.create_task(_until_gone(receive))
        gone.add_done_callback(lambda task: None if task.cancelled() else stream.cancel())
        try:
            async for message in stream:
                await passing.send(message)
        except asyncio.CancelledError:
            # Either this request was cancelled, which goes on, or the client has left, which ends here.
            stream.cancel()
            if not gone.done():
                raise
        finally:
            gone.cancel()

    async def _of_all(self, asked: Mapping[str, Any], body: bytes, send: Send) -> None:
        """Ask all replicas, and pass on the answer of one; of one that failed if any did."""
        told = await self._everywhere("whole", asked, body, timeout=None)
        answers = [one for one in told if not isinstance(one, BaseException)]
        if len(answers) < len(told) or not answers:
            raise Unavailable("a replica was lost meanwhile; ask again.")
        worst: list[Message] = max(answers, key=lambda messages: int(messages[0]["status"]))
        for message in worst:
            await send(message)

    async def _everywhere(self, method: str, *given: Any, timeout: float | None = _SHORT) -> list[Any]:
        """Return what each replica says, or the exception in its place."""
        try:
            response = self.engines.broadcast(method, *given)
            found: list[Any] = await response.results_async(timeout_s=timeout, return_exceptions=True)
        except (*_LOST, TimeoutError):
            return []
        return found


class _Passing:
    """Where an answer goes, and how far it came."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.began = False
        self._streams = False

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        self.began = True
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            self._streams = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            # Ray gave the request its id, and says it too.
            message["headers"] = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
        await self._send(message)

    async def break_off(self) -> None:
        """Say that there is no more to come: as a frame of a stream, which then lacks its ``[DONE]``."""
        if not self._streams:
            raise ConnectionError("the replica was lost within its answer")
        frame = f"data: {json.dumps(error_body(Unavailable('the replica was lost within its answer.')))}\n\n"
        await self._send({"type": "http.response.body", "body": frame.encode(), "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
