"""One base in memory, any number of adapters: `Engine` takes requests from any thread and answers them."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loralab.adapters.habits import Habits
from loralab.data.types import Message
from loralab.errors import ConfigError
from loralab.models.load import BaseModel
from loralab.models.positions import max_positions
from loralab.models.stops import own_stops
from loralab.serving.backends import choose_backend
from loralab.serving.desk import Backend, Desk, Observer
from loralab.serving.errors import BadRequest, Overloaded, Unavailable
from loralab.serving.generate import prompt_ids, template_for
from loralab.serving.library import Library
from loralab.serving.placement import Merging, Placement
from loralab.serving.places import Places
from loralab.serving.policy import Fairness
from loralab.serving.reading import Limits, Roots
from loralab.serving.requests import Answer, Request

__all__ = ["Engine", "EngineSettings", "State"]

State = Literal["ready", "draining", "dead"]
_STUCK = 120.0
"""A worker that makes no step for so many seconds while answers wait is dead."""
_STACKS = 16
"""So many weighted stacks are kept."""


@dataclass(frozen=True)
class EngineSettings:
    """How an engine uses the machine."""

    slots: int = 32
    """How many adapters run in one batch."""
    max_ram: int | None = None
    """Bytes for adapters in memory; None: no bound."""
    max_rank: int = 256
    max_adapter_bytes: int = 2 << 30
    max_waiting: int = 1024
    """Requests that wait; more are refused."""
    max_running: int = 64
    """Requests in one step."""
    max_wait: float = 3.0
    """Seconds until a request that waits goes before all others."""
    batch_tokens: int = 512
    """Tokens of one step."""
    cache_tokens: int = 16_384
    """Tokens whose keys and values are held."""
    merging: Merging = "auto"
    """Whether an adapter that is alone is merged into the weights."""
    merged_sets: int = 1
    """How many merged copies of the weights are held."""
    backend: Literal["auto", "continuous", "plain"] = "auto"


class _Nobody:
    """An observer that does nothing."""

    def finished(self, answer: Answer) -> None: ...
    def loaded(self, name: str, nbytes: int, seconds: float) -> None: ...
    def switched(self, before: str, after: str, mode: str, seconds: float) -> None: ...


class Engine:
    """A base model and the adapters of some folders, answering requests.

    Every method may be called from any thread. A request for an adapter that is not in memory waits, in
    `submit`, for the file to be read; all others go on meanwhile.
    """

    def __init__(
        self,
        base: BaseModel,
        roots: Sequence[str | Path] = (),
        settings: EngineSettings | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.settings = settings = settings or EngineSettings()
        self.observer: Observer = observer or _Nobody()
        self.tokenizer = base.tokenizer
        self.base_name = Path(base.name).name
        self.max_positions = max_positions(base.model.config)
        self._base = base
        places = Places(base.model)
        places.find_groups()
        limits = Limits(file_bytes=settings.max_adapter_bytes, rank=settings.max_rank)
        self.library = Library(
            Roots([Path(root) for root in roots], limits),
            places,
            (self.base_name, base.name),
            settings.max_ram,
            pinned=base.device.type == "cuda",
        )
        self.cache = self.library.cache
        self.placement = Placement(places, settings.slots, settings.merging, settings.merged_sets)
        self.desk = Desk(self.placement, Fairness(settings.slots, settings.max_wait))
        self.library.dropped = self.desk.forget
        self.library.where = self.placement.where
        self.library.read = lambda *told: self.observer.loaded(*told)
        self.placement.told = lambda *told: self.observer.switched(*told)
        self.backend: Backend = choose_backend(base, self.desk, settings)
        self._own_stops = frozenset(own_stops(base.model))
        self._words = base.model.get_input_embeddings().weight.shape[0]
        self._draining = False

    # life

    def start(self) -> None:
        """Measure the kernels, and begin to work."""
        self.placement.calibrate()
        self.backend.start()

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def drain(self) -> None:
        """Take no new requests."""
        self._draining = True

    def close(self, deadline: float = 30.0) -> None:
        """Take no new requests, finish those there are, and end what is left after `deadline` seconds."""
        self.drain()
        end = time.monotonic() + deadline
        while self.desk.answers() and self.backend.alive and time.monotonic() < end:
            time.sleep(0.01)
        self.desk.ending = "the server is stopping"
        self.backend.stop()
        self.desk.close("error", self.desk.ending)
        self.placement.leave()
        self.cache.close()

    @property
    def state(self) -> State:
        """Whether it takes requests, is being drained, or its worker has died or hangs."""
        waits = bool(self.desk.answers())
        stuck = waits and time.perf_counter() - self.desk.last_step > _STUCK
        if self.backend.error is not None or stuck:
            return "dead"
        return "draining" if self._draining else "ready"

    # requests

    def submit(self, request: Request) -> Answer:
        """Begin to answer a request.

        Raises:
            UnknownModel: there is no such model.
            BadRequest: the prompt is empty, has tokens that the base does not know, or leaves no room.
            AdapterError, TooLarge, Forbidden: the adapter cannot be used.
            Full: the memory for adapters is taken.
            Overloaded: too many requests wait.
            Unavailable: the engine is stopping, or has died.
        """
        self._check_open()
        self._check_prompt(request.prompt)
        room = self._room(request)
        with contextlib.ExitStack() as held:
            fitted, habits = self.library.hold(request.model, held)
            ends = frozenset((*self._ends(habits), *request.stops))
            answer = Answer(request, fitted, self.tokenizer, room, ends)
            release = held.pop_all()

        def at_end(ended: Answer) -> None:
            release.close()
            self.observer.finished(ended)

        answer.at_end = at_end
        if request.weight != 1.0:
            self.desk.fairness.weights[request.tenant] = request.weight
        self.desk.last_step = time.perf_counter() if not self.desk.answers() else self.desk.last_step
        self.desk.add(answer)
        self.backend.submit(answer)
        if not self.backend.alive:
            self.desk.fail(answer.id, "the engine has stopped")
        return answer

    def chat_ids(
        self, model: str, messages: Sequence[Message], tools: Sequence[Mapping[str, object]] = ()
    ) -> tuple[int, ...]:
        """Return a conversation as the adapter's own training data would have it.

        Raises:
            UnknownModel, AdapterError: the adapter is not there, or cannot be used.
            ConfigError, DataError: its template cannot write this conversation, or these tools.
        """
        habits = self._habits(model)
        if len(messages) > 1 and template_for(habits, self.tokenizer) is None:
            raise ConfigError("this model has no chat template to tell messages apart: send a single one.")
        return tuple(prompt_ids(self.tokenizer, messages, habits, tools)[0])

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that is to be continued as it stands."""
        return tuple(prompt_ids(self.tokenizer, text, Habits(format="text"))[0])

    # how it stands

    @property
    def waiting(self) -> list[Answer]:
        """The requests that have not begun."""
        return [answer for answer in self.desk.answers() if answer.started is None]

    @property
    def running(self) -> list[Answer]:
        """The requests that have begun."""
        return [answer for answer in self.desk.answers() if answer.started is not None]

    def disk_reads(self) -> int:
        """Return how often an adapter was read from disk."""
        return self.cache.stats.disk_reads

    # within

    def _check_open(self) -> None:
        if self.state == "dead":
            error = self.backend.error
            why = "it makes no steps" if error is None else str(error) or type(error).__name__
            raise Unavailable(f"the engine has died ({why}).")
        if self._draining:
            raise Unavailable("the server is stopping.")

    def _check_prompt(self, prompt: Sequence[int]) -> None:
        if len(self.waiting) >= self.settings.max_waiting:
            raise Overloaded(f"{self.settings.max_waiting} requests wait already; try again later.")
        if not prompt:
            raise BadRequest("the prompt is empty.")
        if not all(0 <= token < self._words for token in prompt):
            raise BadRequest(f"the prompt has tokens outside of 0 to {self._words - 1}.")

    def _room(self, request: Request) -> int:
        bounds = [self.settings.cache_tokens]
        if self.max_positions is not None:
            bounds.append(self.max_positions)
        room = min(bounds) - len(request.prompt)
        if room < 1:
            raise BadRequest(f"the prompt has {len(request.prompt)} tokens; {min(bounds) - 1} is the most.")
        return min(request.sampling.max_new_tokens, room)

    def _habits(self, model: str) -> Habits:
        with contextlib.ExitStack() as held:
            return self.library.hold(model, held)[1]

    def _ends(self, habits: Habits) -> Iterator[int]:
        yield from self._own_stops
        yield from prompt_ids(self.tokenizer, "", habits)[1]
