"""The answers to one HTTP request, brought from the engine's thread to the event loop piece by piece."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from anyio import to_thread
from fastapi import Request as HttpRequest

from loralab.errors import LoralabError
from loralab.serving.errors import ServingError, Unavailable
from loralab.serving.http.keys import Tenant
from loralab.serving.http.log import Record
from loralab.serving.http.site import Site
from loralab.serving.requests import Answer, Piece, Request
from loralab.serving.sampling import Sampling

__all__ = ["Asked", "ClientGone", "Running", "begin"]


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Asked:
    """What a route wants the engine to do."""

    model: str
    """As the client named it."""
    count: int
    """How many prompts there are."""
    prompts: Callable[[str], Sequence[tuple[int, ...]]]
    """Gives the prompts' token ids, for the model's name as the engine has it."""
    choice: Callable[[int], Sampling]
    """Gives how tokens are chosen, for the number of tokens that there is room for."""


async def begin(site: Site, tenant: Tenant, asked: Asked, request: HttpRequest) -> "Running":
    """Hand a request to the engine, and return it running, with its first piece there.

    Raises:
        ServingError: it is refused, or failed before its first piece.
        ClientGone: the client did not wait for it.
    """
    record: Record = request.state.record
    record.model = asked.model
    answers: list[Answer] = []
    running = Running(site, tenant, record, answers)
    try:
        record.adapter = site.engine.library.resolve(asked.model)
        record.known = True
        tenant.check(record.adapter)
        running.enter(asked.count)
        # It waits there for an adapter that is not in memory yet.
        await to_thread.run_sync(_submit, site, tenant, asked, record, answers, limiter=site.threads)
        running.listen(request)
        await running.first()
    except BaseException:
        running.close()
        raise
    return running


def _submit(site: Site, tenant: Tenant, asked: Asked, record: Record, answers: list[Answer]) -> None:
    engine = site.engine
    for ids in asked.prompts(record.adapter):
        most = engine.max_positions
        room = site.settings.max_tokens if most is None else max(1, most - len(ids))
        wanted = Request(ids, record.adapter, asked.choice(room), tenant=tenant.name, weight=tenant.weight)
        answers.append(engine.submit(wanted))
    record.digest = answers[0].identity


class Running:
    """Answers that are being written. Iterating gives (which prompt, piece) as they come."""

    def __init__(self, site: Site, tenant: Tenant, record: Record, answers: list[Answer]) -> None:
        self.answers = answers
        self.record = record
        self._site = site
        self._tenant = tenant
        self._entered = 0
        self._open = 0
        self._behind = False
        self._ahead: tuple[int, Piece] | None = None
        self._queue: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Task[None] | None = None

    def enter(self, requests: int) -> None:
        """Count the requests for the tenant. Raises Overloaded over its quota."""
        self._site.quotas.enter(self._tenant, requests)
        self._entered = requests

    def listen(self, request: HttpRequest) -> None:
        """Begin to take pieces, and to look whether the client is still there."""
        self._open = len(self.answers)
        self._gone = self._loop.create_task(_until_gone(request))
        self._gone.add_done_callback(lambda task: None if task.cancelled() else self._queue.put_nowait(None))
        for index, answer in enumerate(self.answers):
            answer.listen(partial(self._from_engine, index))

    async def first(self) -> None:
        """Wait for the first piece, and leave it to be iterated over. Raises as iterating."""
        self._ahead = await self._next()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield the pieces until every answer has its last.

        Raises:
            ServingError: the engine failed, or the client reads too slowly.
            ClientGone: the client has left.
        """
        while self._open:
            index, piece = self._ahead or await self._next()
            self._ahead = None
            self._open -= piece.finish is not None
            yield index, piece

    def headers(self) -> dict[str, str]:
        """Return the headers that say who answers, and what it waited for."""
        first = self.answers[0]
        headers = {"x-mode": first.mode or "base"}
        if self.record.adapter:
            headers |= {"x-adapter-id": self.record.adapter, "x-adapter-digest": first.identity}
        if first.queued_seconds is not None:
            headers["x-queue-time"] = f"{first.queued_seconds:.6f}"
        return headers

    @property
    def prompt_tokens(self) -> int:
        """How many tokens all prompts have."""
        return sum(answer.prompt_tokens for answer in self.answers)

    @property
    def completion_tokens(self) -> int:
        """How many tokens were written so far."""
        return sum(len(answer.tokens) for answer in self.answers)

    def close(self) -> None:
        """Give up what is not finished, and take note of what there was; a second call does nothing."""
        if self._gone is not None:
            self._gone.cancel()
            self._gone = None
        left = self._give_up()
        self._note()
        if left and not self.record.error:
            self.record.error = "the client has left."
        if self._entered:
            tokens = self.prompt_tokens + self.completion_tokens
            self._site.quotas.leave(self._tenant, self._entered, tokens)
            self._entered = 0

    def failed(self, error: LoralabError) -> None:
        """Note why a stream ends early."""
        self.record.error = " ".join(str(error).split())

    def _give_up(self) -> bool:
        """Stop what is not finished, and return whether there was any."""
        left = [answer for answer in self.answers if answer.finish is None]
        for answer in left:
            answer.cancel()
        return bool(left)

    def _note(self) -> None:
        if not self.answers:
            return
        record, first = self.record, self.answers[0]
        record.prompt_tokens, record.completion_tokens = self.prompt_tokens, self.completion_tokens
        record.queue_seconds, record.mode = first.queued_seconds, first.mode

    def _from_engine(self, index: int, piece: Piece) -> None:
        # The loop is closed when a server did not wait for its engine.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take, index, piece)

    def _take(self, index: int, piece: Piece) -> None:
        if self._queue.qsize() < self._site.settings.max_behind * max(1, len(self.answers)):
            self._queue.put_nowait((index, piece))
        elif not self._behind:
            # Sending waits for the client and may do so for long; the engine need not.
            self._behind = True
            self._give_up()
            self._queue.put_nowait(None)

    async def _next(self) -> tuple[int, Piece]:
        item = await self._queue.get()
        if item is None or self._behind:
            if self._behind:
                raise ServingError("the client reads more slowly than the answer is written.")
            raise ClientGone
        if item[1].count and self.record.first_token_seconds is None:
            self.record.first_token_seconds = self.record.elapsed
        piece = item[1]
        if piece.finish == "error" and self._site.engine.state == "ready":
            raise ServingError(piece.error)
        if piece.finish in ("error", "cancelled"):
            raise Unavailable(piece.error or "the server is stopping.")
        return item


async def _until_gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
