"""The way through a lineup: what is in the table already is shown, the rest is measured and added."""

import hashlib
import json
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from loralab.files import write_text
from loralab.training.evaluation.generate import answer
from loralab.training.evaluation.harness import check_tasks, harness_version, run_task, task_digest
from loralab.training.evaluation.lineup import Lineup, Subject
from loralab.training.evaluation.material import Material, is_text, read_material
from loralab.training.evaluation.metrics import Score, load_metrics
from loralab.training.evaluation.perplexity import measure_loss
from loralab.training.evaluation.settings import EvalSettings
from loralab.training.evaluation.table import Table
from loralab.training.loop import perplexity

__all__ = ["Book", "Measured", "Measuring", "Progress", "Read", "measure"]


@dataclass(frozen=True)
class Book:
    """The table, and how it is written to."""

    table: Table
    again: bool = False
    """Measure also what the table has."""
    comment: str = ""


@dataclass(frozen=True)
class Read:
    """The data is read."""

    material: Material


@dataclass(frozen=True)
class Progress:
    """How far the measuring of one subject is."""

    subject: str
    unit: str
    """What is counted: tokens or answers."""
    done: int
    total: int


@dataclass(frozen=True)
class Measured:
    """A row of the table."""

    row: dict[str, Any]
    known: bool
    """Whether it was there already."""


Measuring: TypeAlias = Read | Progress | Measured


def measure(lineup: Lineup, settings: EvalSettings, book: Book) -> Iterator[Measuring]:
    """Yield the rows of all subjects, each as soon as it is in the table, and the way there.

    Adapters whose prompts are written in different templates are each measured in their own, and the base in
    each of these.

    Raises:
        ConfigError: a setting has no effect on this data, or a library or a task is missing.
        DataError: the data or the table cannot be read.
        CheckpointError: the table cannot be written.
    """
    book.table.check()
    if settings.task_names:
        yield from _measure_tasks(lineup, settings, book)
        return
    scores = load_metrics(settings.metric_names)
    text = is_text(settings)
    for template, subjects in _by_template(lineup, settings, text).items():
        material = read_material(settings, template, lineup.base, text=text)
        yield Read(material)
        for subject in subjects:
            row = _identity(lineup, subject) | {
                "data": settings.data,
                "rows": material.rows,
                "format": material.data.format,
                "template": material.data.template,
                "max_length": material.max_length or "",
                "stride": material.stride or "",
            }
            settled: dict[str, Any] = {"data": material.data.fingerprint}
            if scores:
                settled |= {"metrics": list(scores), "max_new_tokens": settings.answer_tokens}
            row["key"] = _key(lineup, row, settled)
            yield from _once(book, row, _measure(lineup, subject, settings, material, scores))


def _measure_tasks(lineup: Lineup, settings: EvalSettings, book: Book) -> Iterator[Measuring]:
    manager = check_tasks(settings.task_names)
    for subject in lineup.subjects:
        for name in settings.task_names:
            row = _identity(lineup, subject)
            row |= {"data": name, "rows": settings.limit or "", "format": "lm_eval"}
            row["key"] = _key(lineup, row, {"data": task_digest(name), "lm_eval": harness_version()})
            yield from _once(book, row, _measure_task(lineup, subject, settings, manager, name))


def _by_template(lineup: Lineup, settings: EvalSettings, text: bool) -> dict[str, list[Subject]]:
    """Return who is measured on the data as each template writes it. Text is read as it stands."""
    base, *adapters = lineup.subjects
    if text or settings.template != "auto" or not adapters:
        return {settings.template: list(lineup.subjects)}
    found: dict[str, list[Subject]] = {}
    for subject in adapters:
        found.setdefault(subject.template, [base]).append(subject)
    return found


_Numbers: TypeAlias = Generator[Measuring, None, dict[str, Any]]


def _once(book: Book, row: dict[str, Any], work: _Numbers) -> Iterator[Measuring]:
    """Yield the row that the table has of this key; else do the work, add the row and yield it."""
    known = None if book.again else book.table.find(row["key"])
    if known is not None:
        if book.comment and known.get("comment") != book.comment:
            book.table.set_comment([row["key"]], book.comment)
            known["comment"] = book.comment
        yield Measured(known | {name: row[name] for name in ("adapter", "data")}, True)
        return
    numbers = yield from work
    answers = numbers.pop("answers", None)
    done = {"date": datetime.now().astimezone().isoformat(timespec="seconds"), **row, **numbers}
    if answers is not None:
        done["answers"] = _write_answers(book.table, done, answers)
    done["comment"] = book.comment
    book.table.add(done)
    yield Measured(done, False)


def _measure(
    lineup: Lineup,
    subject: Subject,
    settings: EvalSettings,
    material: Material,
    scores: Mapping[str, Score],
) -> _Numbers:
    """Yield the way to, and return, the numbers of one row."""
    tokenizer, batch = lineup.base.tokenizer, settings.micro_batch_size
    with lineup.alone(subject) as model:
        losses = measure_loss(model, lineup.task, material.examples, batch)
        loss, tokens = yield from _told(losses, subject, "tokens", material.tokens)
        numbers: dict[str, Any] = {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens}
        if not scores:
            return numbers
        questions = material.questions
        size = (settings.answer_tokens, batch)
        answering = answer(model, tokenizer, questions, material.ends, size)
        said = yield from _told(answering, subject, "answers", len(questions))
    wanted = [question.references for question in questions]
    for score in scores.values():
        numbers |= score(said, wanted)
    numbers["answers"] = [
        {
            "source": question.source,
            "prompt": tokenizer.decode(question.ids),
            "answer": text,
            "references": question.references,
        }
        for question, text in zip(questions, said, strict=True)
    ]
    return numbers


def _measure_task(
    lineup: Lineup, subject: Subject, settings: EvalSettings, manager: Any, name: str
) -> _Numbers:
    """Yield the way to, and return, the numbers of one row. The harness shows its own way."""
    yield Progress(subject.name, "tasks", 0, 1)
    with lineup.alone(subject):
        # The adapters are layers of the base's own model, which is the kind that the harness knows.
        return run_task(
            manager, name, lineup.base.model, lineup.base, (settings.limit, settings.micro_batch_size)
        )


def _told(
    work: Generator[int, None, Any], subject: Subject, unit: str, total: int
) -> Generator[Measuring, None, Any]:
    """Yield progress for each count that the work yields, and return what it returns."""
    yield Progress(subject.name, unit, 0, total)
    while True:
        try:
            done = next(work)
        except StopIteration as end:
            return end.value
        yield Progress(subject.name, unit, done, total)


def _identity(lineup: Lineup, subject: Subject) -> dict[str, Any]:
    return {
        "model": lineup.base.name,
        "adapter": subject.name,
        "adapter_digest": subject.digest,
        "dtype": str(lineup.base.dtype).removeprefix("torch."),
    }


def _key(lineup: Lineup, row: Mapping[str, Any], settled: Mapping[str, Any]) -> str:
    """Return a digest of all that the numbers depend on, by content and not by what it is called."""
    named = {name: value for name, value in row.items() if name not in ("adapter", "data")}
    values = {"base": lineup.base_digest, "row": named, "settled": settled}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _write_answers(table: Table, row: Mapping[str, Any], answers: list[dict[str, Any]]) -> str:
    """Write the answers beside the table, one a line, and return the file's name seen from there."""
    adapter = re.sub(r"[^\w.-]+", "-", row["adapter"]).strip("-.")[-60:] or "adapter"
    path = table.path.parent / f"{table.path.stem}-answers" / f"{adapter}-{row['key']}.jsonl"
    write_text(path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in answers))
    return str(path.relative_to(table.path.parent))
