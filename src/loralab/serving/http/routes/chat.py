"""``/v1/chat/completions``."""

import time
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from loralab.serving.http.chat_body import ChatBody
from loralab.serving.http.logprobs import of_chat
from loralab.serving.http.replies import ChatReply
from loralab.serving.http.running import Asked, Running, begin
from loralab.serving.http.site import CallerOf, RecordOf, SiteOf
from loralab.serving.http.streaming import EventStream, usage
from loralab.serving.requests import Chosen, Piece

router = APIRouter(tags=["OpenAI"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatReply,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "The answer, whole or as a stream."}
    },
)
async def chat(
    body: ChatBody, request: Request, site: SiteOf, caller: CallerOf, record: RecordOf
) -> Response:
    """Go on with a conversation, in the template of the adapter that is asked."""
    messages, tools, engine = body.conversation(), body.functions_offered(), site.engine
    asked = Asked(
        body.model,
        1,
        lambda model: [engine.chat_ids(model, messages, tools)],
        lambda room: body.choice(body.wanted or min(room, site.settings.max_tokens), body.alternatives),
    )
    running = await begin(site, caller, asked, request)
    chunks = _Chunks(running, f"chatcmpl-{record.id}", body)
    if body.stream:
        return EventStream(running, chunks)
    try:
        return JSONResponse(await chunks.whole(), headers=running.headers())
    finally:
        running.close()


@dataclass(frozen=True)
class _Chunks:
    """The answer in OpenAI's words."""

    running: Running
    id: str
    body: ChatBody

    def opening(self) -> list[dict[str, Any]]:
        """Say who speaks."""
        return [self._chunk({"role": "assistant", "content": ""})]

    def of(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Tell more of the answer, and how it ended."""
        chunks = []
        if piece.text or piece.tokens:
            chunks.append(self._chunk({"content": piece.text}, logprobs=self._logprobs(piece.tokens)))
        if piece.finish:
            chunks.append(self._chunk({}, finish=piece.finish))
        return chunks

    def closing(self) -> list[dict[str, Any]]:
        """Count the tokens."""
        if not self.body.includes_usage:
            return []
        return [{**self._head("chat.completion.chunk"), "choices": [], "usage": usage(self.running)}]

    async def whole(self) -> dict[str, Any]:
        """Return the answer in one piece."""
        text, finish, tokens = "", None, list[Chosen]()
        async for _, piece in self.running:
            text, finish = text + piece.text, piece.finish
            tokens += piece.tokens
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(tokens),
            "finish_reason": finish,
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(self.running)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": int(time.time()), "model": self.body.model}

    def _chunk(
        self, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        counted = {"usage": None} if self.body.includes_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **counted}

    def _logprobs(self, tokens: "list[Chosen] | tuple[Chosen, ...]") -> dict[str, Any] | None:
        return of_chat(tokens) if self.body.logprobs else None
