"""Greedy answers to the prompts of a data set, several at a time.

Shape key: B rows, T tokens of a row.
"""

from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from loralab.data.encode import encode_chat, stop_ids
from loralab.data.templates import Template
from loralab.data.types import Chat, Example, Message
from loralab.models.positions import max_positions
from loralab.models.stops import own_stops

__all__ = ["Ends", "Question", "answer", "find_ends", "find_questions"]


@dataclass(frozen=True)
class Ends:
    """What ends an answer."""

    ids: tuple[int, ...]
    text: str = ""
    """The template's mark where it is no token but text."""


@dataclass(frozen=True)
class Question:
    """A prompt, and the answers that the data has for it."""

    ids: tuple[int, ...]
    references: tuple[str, ...]
    source: str
    """The first row that asks it."""


def find_ends(template: Template, model: Any, tokenizer: Any) -> Ends:
    """Return what ends an answer that is written in `template`, or that the model's own files say does."""
    ids = {*stop_ids(template, tokenizer), *own_stops(model)}
    chat = Chat((Message("user", "a"), Message("assistant", "b")))
    probe = encode_chat(chat, template, tokenizer)
    marked = [token for token, weight in zip(probe.ids, probe.weights, strict=True) if weight]
    text = tokenizer.decode([token for token in marked if token not in ids], skip_special_tokens=True)
    return Ends(tuple(sorted(ids)), text.strip().removeprefix("b").strip())


def find_questions(examples: Sequence[Example], tokenizer: Any, ends: Ends) -> list[Question]:
    """Return a question for each prompt: all that stands before an answer, earlier turns included.

    Rows with the same prompt are one question with several references.
    """
    references: dict[tuple[int, ...], list[str]] = defaultdict(list)
    sources: dict[tuple[int, ...], str] = {}
    for example in examples:
        for start, stop in _answers(example):
            prompt = example.ids[:start]
            references[prompt].append(_read(example.ids[start:stop], tokenizer, ends))
            sources.setdefault(prompt, example.source)
    return [Question(prompt, tuple(texts), sources[prompt]) for prompt, texts in references.items()]


def answer(
    model: Any, tokenizer: Any, questions: Sequence[Question], ends: Ends, size: tuple[int, int]
) -> Generator[int, None, list[str]]:
    """Yield how many prompts are answered, batch by batch; return the answers, in the questions' order.

    Args:
        size: the tokens of the longest answer, and the prompts of a batch.
    """
    longest, batch = size
    rooms = [_room(model, question, longest) for question in questions]
    # Prompts of a batch have the same room, so that what is said does not depend on who is beside it.
    order = sorted(range(len(questions)), key=lambda i: (rooms[i], len(questions[i].ids)))
    answers = [""] * len(questions)
    done = 0
    for room, same in groupby(order, key=lambda i: rooms[i]):
        indices = list(same)
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            said = _generate(model, tokenizer, [questions[i].ids for i in part], ends, room)
            for index, ids in zip(part, said, strict=True):
                answers[index] = _read(ids, tokenizer, ends)
            done += len(part)
            yield done
    return answers


def _answers(example: Example) -> Iterator[tuple[int, int]]:
    """Yield where each run of trained tokens begins and ends."""
    start = 0
    for trained, run in groupby(example.weights, key=bool):
        stop = start + len(list(run))
        if trained:
            yield start, stop
        start = stop


def _room(model: Any, question: Question, longest: int) -> int:
    """Return how long an answer may be. The reference fits, so there is always some room."""
    positions = max_positions(model.config)
    return longest if positions is None else max(1, min(longest, positions - len(question.ids)))


@torch.no_grad()
def _generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], ends: Ends, room: int
) -> list[list[int]]:
    """Return the ids that follow each prompt. Prompts are padded on the left."""
    width = max(len(prompt) for prompt in prompts)
    ids_BT = torch.full((len(prompts), width), tokenizer.pad_token_id)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, width - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, width - len(prompt) :] = 1
    stop_text: dict[str, Any] = {"stop_strings": [ends.text], "tokenizer": tokenizer} if ends.text else {}
    said_BT = model.generate(
        input_ids=ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        max_new_tokens=room,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=list(ends.ids) or None,
        pad_token_id=tokenizer.pad_token_id,
        **stop_text,
    )
    found: list[list[int]] = said_BT[:, width:].tolist()
    return found


def _read(ids: Sequence[int], tokenizer: Any, ends: Ends) -> str:
    """Return the text of an answer up to what ends it, without white space around it."""
    stop = next((place for place, token in enumerate(ids) if token in ends.ids), len(ids))
    text: str = tokenizer.decode(list(ids[:stop]), skip_special_tokens=True)
    return (text.partition(ends.text)[0] if ends.text else text).strip()
