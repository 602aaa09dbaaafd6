"""Answers as server-sent events: a frame a piece, an error as a frame, and ``[DONE]`` at the end."""

import json
from collections.abc import AsyncIterator
from typing import Any, Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from loralab.errors import LoralabError
from loralab.serving.http.errors import error_body
from loralab.serving.http.running import ClientGone, Running
from loralab.serving.requests import Piece

__all__ = ["Chunks", "EventStream", "usage"]

_DONE = "data: [DONE]\n\n"


class Chunks(Protocol):
    """How one route writes its chunks."""

    def opening(self) -> list[dict[str, Any]]:
        """Return the chunks before the first piece."""

    def of(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunks for a piece of the answer to prompt `index`."""

    def closing(self) -> list[dict[str, Any]]:
        """Return the chunks after the last piece."""


class EventStream(StreamingResponse):
    """A response that writes answers as they come, and gives them up when the client leaves."""

    def __init__(self, running: Running, chunks: Chunks) -> None:
        self.running = running
        running.record.stream = True
        headers = {**running.headers(), "cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_frames(running, chunks), headers=headers, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. However it ends, also before the first frame, the engine is told."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.running.close()


async def _frames(running: Running, chunks: Chunks) -> AsyncIterator[str]:
    try:
        for chunk in chunks.opening():
            yield _frame(chunk)
        async for index, piece in running:
            for chunk in chunks.of(index, piece):
                yield _frame(chunk)
        for chunk in chunks.closing():
            yield _frame(chunk)
    except LoralabError as error:
        running.failed(error)
        yield _frame(error_body(error))
        return
    except ClientGone:
        return
    # Only a stream that is whole has this.
    yield _DONE


def _frame(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def usage(running: Running) -> dict[str, int]:
    """Return the count of tokens as OpenAI has it."""
    read, written = running.prompt_tokens, running.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
