"""What is asked of an engine, and the answer while it is written."""

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from loralab.serving.errors import ServingError
from loralab.serving.places import Fitted
from loralab.serving.sampling import Sampler, Sampling
from loralab.serving.text import TextStream

__all__ = ["Answer", "Chosen", "Piece", "Request"]


@dataclass(frozen=True)
class Request:
    """One prompt for the base or an adapter."""

    prompt: Sequence[int]
    """Token ids."""
    model: str = ""
    """"" or the base's name, an adapter's name, or a weighted stack such as "a:0.7+b:0.3"."""
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[int, ...] = ()
    """Tokens that end the answer, beside the model's own."""
    tenant: str = ""
    weight: float = 1.0
    """The tenant's share: who has twice the weight gets twice the tokens while all wait."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Chosen:
    """A token, its log-probability, and those of the likeliest ones."""

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """More of an answer."""

    text: str
    count: int
    """How many tokens were written so far."""
    tokens: tuple[Chosen, ...] = ()
    """The tokens of this piece, where log-probabilities were asked for."""
    finish: str | None = None
    """Of the last piece: "stop", "length", "cancelled" or "error"."""
    error: str = ""


class Answer:
    """One request being generated. Iterating waits for its pieces; `listen` has them called out instead."""

    def __init__(
        self, request: Request, fitted: Fitted | None, tokenizer: Any, room: int, ends: frozenset[int]
    ) -> None:
        self.request = request
        self.id = request.id
        self.fitted = fitted
        """What it runs with; None: the base alone."""
        self.room = room
        """How many tokens it may have."""
        self.ends = ends
        """The tokens that end it."""
        self.sampler = Sampler(request.sampling)
        self.tokens: list[int] = []
        self.mode = ""
        """How it ran last: "base", "merged" or "mixed"."""
        self.submitted = time.perf_counter()
        self.started: float | None = None
        self.first: float | None = None
        self.ended: float | None = None
        self.finish: str | None = None
        self.cancelled = False
        self.at_end: Callable[[Answer], None] = lambda answer: None
        """Called once, after the last piece."""
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer, request.sampling.stop)
        self._pieces: deque[Piece] = deque()
        self._changed = threading.Condition()
        self._listener: Callable[[Piece], None] | None = None

    @property
    def identity(self) -> str:
        """The sha256 of the adapter, "" for the base."""
        return self.fitted.identity if self.fitted else ""

    @property
    def tenant(self) -> str:
        """Who asks."""
        return self.request.tenant

    @property
    def alone(self) -> bool:
        """Whether it cannot run beside other adapters."""
        return self.fitted is not None and not self.fitted.mixable

    @property
    def left(self) -> int:
        """How many tokens it may still write."""
        return self.room - len(self.tokens)

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return len(self.request.prompt)

    @property
    def queued_seconds(self) -> float | None:
        """How long it waited for its first step; None while it waits."""
        return None if self.started is None else self.started - self.submitted

    # for who asked

    def __iter__(self) -> Iterator[Piece]:
        while True:
            with self._changed:
                while not self._pieces:
                    self._changed.wait()
                piece = self._pieces.popleft()
            yield piece
            if piece.finish:
                return

    def listen(self, call: Callable[[Piece], None]) -> None:
        """Have `call` get each piece, the earlier ones first; it runs in the engine's thread."""
        with self._changed:
            for piece in self._pieces:
                call(piece)
            self._pieces.clear()
            self._listener = call

    def cancel(self) -> None:
        """Stop writing; the last piece says "cancelled"."""
        self.cancelled = True

    def text(self) -> str:
        """Wait for all of it and return it.

        Raises:
            ServingError: the engine failed.
        """
        pieces = list(self)
        if pieces[-1].finish == "error":
            raise ServingError(pieces[-1].error)
        return "".join(piece.text for piece in pieces)

    # for the engine

    def begin(self, mode: str) -> None:
        """Note that a step includes it."""
        self.mode = mode
        if self.started is None:
            self.started = time.perf_counter()

    def push(self, token: int, logits_V: Tensor) -> bool:
        """Take the next token, chosen from these logits, and return whether it was the last."""
        if self.finish is not None:
            return True
        if self.first is None:
            self.first = time.perf_counter()
        sampling = self.request.sampling
        self.tokens.append(token)
        is_end = not sampling.ignore_eos and token in self.ends
        text = "" if is_end else self._text.push(token)
        tells = sampling.logprobs is not None and not is_end
        chosen = (self._told(token, logits_V),) if tells else ()
        if self.cancelled:
            self.close("cancelled")
        elif is_end or self._text.ended:
            self.close("stop", text, chosen)
        elif len(self.tokens) >= self.room:
            self.close("length", text, chosen)
        elif text or chosen:
            self._emit(Piece(text, len(self.tokens), chosen))
        return self.finish is not None

    def close(self, finish: str, text: str = "", chosen: tuple[Chosen, ...] = (), error: str = "") -> None:
        """End it; a second end changes nothing."""
        if self.finish is not None:
            return
        self.finish, self.ended = finish, time.perf_counter()
        if finish in ("stop", "length"):
            text += self._text.rest()
        self.at_end(self)
        self._emit(Piece(text, len(self.tokens), chosen, finish, error))

    def _told(self, token: int, logits_V: Tensor) -> Chosen:
        chances_V = torch.log_softmax(logits_V, -1)
        best = chances_V.topk(self.request.sampling.logprobs or 0)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = tuple((other, self._tokenizer.decode([other]), value) for other, value in pairs)
        return Chosen(token, self._tokenizer.decode([token]), float(chances_V[token]), top)

    def _emit(self, piece: Piece) -> None:
        with self._changed:
            if self._listener is None:
                self._pieces.append(piece)
                self._changed.notify_all()
                return
            try:
                self._listener(piece)
            except RuntimeError:  # of an event loop that is closed: nobody is there any more
                self.cancelled = True
