"""``/v1/completions``."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from loralab.serving.engine import Engine
from loralab.serving.errors import BadRequest
from loralab.serving.http.completion_body import CompletionBody
from loralab.serving.http.logprobs import of_completion
from loralab.serving.http.replies import CompletionReply
from loralab.serving.http.running import Asked, Running, begin
from loralab.serving.http.site import CallerOf, RecordOf, SiteOf
from loralab.serving.http.streaming import EventStream, usage
from loralab.serving.requests import Chosen, Piece

router = APIRouter(tags=["OpenAI"])

_SHORT = 16
"""The length of a completion that does not say how long: OpenAI's."""


@router.post(
    "/v1/completions",
    response_model=CompletionReply,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "The texts, whole or as a stream."}
    },
)
async def completions(
    body: CompletionBody, request: Request, site: SiteOf, caller: CallerOf, record: RecordOf
) -> Response:
    """Go on with texts as they stand, without a template; each prompt is a choice of the answer."""
    if len(body.prompts) > site.settings.max_prompts:
        raise BadRequest(
            f"there are {len(body.prompts)} prompts; expected at most {site.settings.max_prompts}."
        )
    asked = Asked(
        body.model,
        len(body.prompts),
        lambda model: [_ids(site.engine, prompt) for prompt in body.prompts],
        lambda room: body.choice(body.max_tokens or min(room, _SHORT), body.logprobs),
    )
    running = await begin(site, caller, asked, request)
    chunks = _Chunks(running, f"cmpl-{record.id}", body)
    if body.stream:
        return EventStream(running, chunks)
    try:
        return JSONResponse(await chunks.whole(), headers=running.headers())
    finally:
        running.close()


def _ids(engine: Engine, prompt: str | Sequence[int]) -> tuple[int, ...]:
    return engine.text_ids(prompt) if isinstance(prompt, str) else tuple(prompt)


@dataclass
class _Chunks:
    """The texts in OpenAI's words."""

    running: Running
    id: str
    body: CompletionBody
    offsets: dict[int, int] = field(default_factory=dict)
    """How many characters of each text were told with their probabilities."""

    def opening(self) -> list[dict[str, Any]]:
        """Nothing is said before the text."""
        return []

    def of(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Tell more of a text, and how it ended."""
        choice = {
            "index": index,
            "text": piece.text,
            "logprobs": self._logprobs(index, piece.tokens),
            "finish_reason": piece.finish,
        }
        counted = {"usage": None} if self.body.includes_usage else {}
        return [{**self._head(), "choices": [choice], **counted}]

    def closing(self) -> list[dict[str, Any]]:
        """Count the tokens."""
        if not self.body.includes_usage:
            return []
        return [{**self._head(), "choices": [], "usage": usage(self.running)}]

    async def whole(self) -> dict[str, Any]:
        """Return all texts in one piece."""
        pieces: list[list[Piece]] = [[] for _ in self.running.answers]
        async for index, piece in self.running:
            pieces[index].append(piece)
        choices = [
            {
                "index": index,
                "text": "".join(piece.text for piece in parts),
                "logprobs": self._logprobs(index, [token for piece in parts for token in piece.tokens]),
                "finish_reason": parts[-1].finish,
            }
            for index, parts in enumerate(pieces)
        ]
        return {**self._head(), "choices": choices, "usage": usage(self.running)}

    def _head(self) -> dict[str, Any]:
        created = int(time.time())
        return {"id": self.id, "object": "text_completion", "created": created, "model": self.body.model}

    def _logprobs(self, index: int, tokens: Sequence[Chosen]) -> dict[str, Any] | None:
        if self.body.logprobs is None:
            return None
        told = of_completion(tokens, self.offsets.get(index, 0))
        self.offsets[index] = self.offsets.get(index, 0) + sum(len(token.text) for token in tokens)
        return told
