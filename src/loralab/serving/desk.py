"""The answers that are being written, and all that a backend asks about them.

Whom to let in, what a step runs with, which tokens come next.
"""

import threading
import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from loralab.errors import AdapterError
from loralab.serving.placement import Placement
from loralab.serving.policy import Fairness
from loralab.serving.requests import Answer
from loralab.serving.sampling import choose

__all__ = ["Backend", "Desk", "Observer"]


class Observer(Protocol):
    """Who is told what happens, as metrics are; called from the engine's threads."""

    def finished(self, answer: Answer) -> None:
        """An answer has ended, however."""

    def loaded(self, name: str, nbytes: int, seconds: float) -> None:
        """An adapter was read from disk."""

    def switched(self, before: str, after: str, mode: str, seconds: float) -> None:
        """The model went from one identity to another."""


class Backend(Protocol):
    """What runs the model."""

    @property
    def alive(self) -> bool:
        """Whether it goes on."""

    @property
    def error(self) -> BaseException | None:
        """What it ended with, if with an error."""

    def start(self) -> None:
        """Start its thread."""

    def submit(self, answer: Answer) -> None:
        """Begin to work on an answer, which the desk has."""

    def wake(self) -> None:
        """Look at the answers again."""

    def stop(self) -> None:
        """End the thread."""


class Desk:
    """Between an engine, which adds answers, and a backend, which writes them."""

    def __init__(self, placement: Placement, fairness: Fairness) -> None:
        self.placement, self.fairness = placement, fairness
        self.ending = ""
        """Once set, what is said to all who fail: why the engine ends."""
        self.steps = 0
        self.last_step = time.perf_counter()
        self._answers: dict[str, Answer] = {}
        self._leaving: list[str] = []
        self._broken: dict[str, str] = {}
        self._lock = threading.Lock()

    # for the engine

    def add(self, answer: Answer) -> None:
        """Take an answer that is to be written."""
        with self._lock:
            self._answers[answer.id] = answer

    def forget(self, identity: str) -> None:
        """Drop what is held of an adapter before the next step."""
        with self._lock:
            self._leaving.append(identity)

    def answers(self) -> list[Answer]:
        """Return those that are not finished."""
        with self._lock:
            return list(self._answers.values())

    def close(self, finish: str, error: str = "") -> None:
        """End all answers."""
        for answer in self.answers():
            answer.close(finish, error=error)
            self._drop(answer)

    # for the backend

    def going(self, answer_id: str) -> bool:
        """Return whether an answer is still to be written."""
        answer = self._answers.get(answer_id)
        if answer is not None and answer.cancelled:
            answer.close("cancelled")
            self._drop(answer)
            return False
        return answer is not None

    def admit(self, waiting: Sequence[str], running: Sequence[str]) -> list[str]:
        """Return those of the waiting answers that may begin, in order."""
        ask, work = ([self._answers[i] for i in ids if i in self._answers] for ids in (waiting, running))
        return [answer.id for answer in self.fairness.admit(ask, work)]

    def place_of(self, answer_id: str) -> tuple[int, int, str]:
        """Return what to order a step by, so that tokens of one adapter lie together, by slot."""
        identity = self._answers[answer_id].identity
        seat = self.placement.mixed.seats.get(identity)
        if not identity:
            return -1, -1, ""
        return (seat.bucket, seat.slot, identity) if seat else (1 << 30, 0, identity)

    def enter(self, batch: Sequence[tuple[str, int, bool]], only_last: bool) -> None:
        """Make ready for a step over (answer, tokens, whether its next token is wanted).

        With `only_last` the model's head sees one token of each answer, those whose next is wanted first.
        """
        with self._lock:
            leaving, self._leaving = self._leaving, []
            present = {answer.identity for answer in self._answers.values()}
        for identity in leaving:
            if identity not in present:
                self.placement.forget(identity)
        answers = [(self._answers[i], tokens, wanted) for i, tokens, wanted in batch]
        runs = [(answer.fitted, tokens) for answer, tokens, _ in answers]
        last = [(answer.fitted, 1) for answer, _, wanted in answers if wanted]
        last += [(None, 1)] * (len(answers) - len(last))
        try:
            mode = self.placement.enter(runs, last if only_last else None, present)
        except AdapterError as error:  # it runs alone, so the step has no others
            self._broken = dict.fromkeys((answer.id for answer, _, _ in answers), str(error))
            self.placement.leave()
            mode = "base"
        for answer, tokens, _ in answers:
            answer.begin(mode)
            if not answer.tokens:
                self.fairness.count(answer, prompt=tokens)
        self.steps += 1
        self.last_step = time.perf_counter()

    def take(self, ids: Sequence[str], logits_BV: Tensor) -> list[int]:
        """Choose the next tokens of these answers from their logits, and return them."""
        answers = [self._answers[answer_id] for answer_id in ids]
        logits_BV = logits_BV.float()
        finite = torch.isfinite(logits_BV.amax(-1)).tolist()
        for row, answer in enumerate(answers):
            # An adapter whose numbers overflow, for instance; it is nobody else's trouble.
            reason = self._broken.pop(answer.id, "" if finite[row] else "the model's scores are not finite.")
            if reason:
                self.fail(answer.id, reason)
                logits_BV[row] = 0.0
        tokens = choose(logits_BV, [answer.sampler for answer in answers])
        for answer, token, logits_V in zip(answers, tokens, logits_BV, strict=True):
            self.fairness.count(answer, written=1)
            if answer.push(token, logits_V):
                self._drop(answer)
        return tokens

    def fail(self, answer_id: str, error: str) -> None:
        """End an answer that cannot be written."""
        answer = self._answers.get(answer_id)
        if answer is not None:
            answer.close("error", error=self.ending or error)
            self._drop(answer)

    def _drop(self, answer: Answer) -> None:
        with self._lock:
            self._answers.pop(answer.id, None)
