"""One base with any number of adapters on it, of which one speaks at a time."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from loralab.adapters import PeftModel, read_adapter
from loralab.adapters.embeddings import set_embeddings, split_embeddings
from loralab.adapters.habits import template_of
from loralab.adapters.store import find_adapter
from loralab.models import BaseModel, load_base
from loralab.models.demo import BASE as DEMO_BASE
from loralab.models.load import DEMO
from loralab.training.evaluation.settings import EvalSettings
from loralab.training.prepare import causal_lm
from loralab.training.tasks import Task

__all__ = ["Lineup", "Subject", "open_lineup"]


@dataclass(frozen=True)
class Subject:
    """What is measured: the base alone, or with an adapter."""

    name: str
    """As the user named the adapter; "base"."""
    digest: str = ""
    """The beginning of the adapter's digest; "" for the base."""
    template: str = "auto"
    """How the adapter's prompts were written."""
    slot: str = ""
    """Its name on the model; "" for the base."""
    embeddings: tuple[tuple[Tensor, Tensor], ...] = ()
    """Embeddings that came with it: the base's parameter, and the value."""


@dataclass(frozen=True)
class Lineup:
    """A base, its adapters, and the task that gives their loss."""

    base: BaseModel
    base_digest: str
    """Changes when the base's files do."""
    model: Any
    """The base, adapted where there are adapters."""
    task: Task
    subjects: tuple[Subject, ...]
    """The base first, then the adapters as they were named."""

    @contextlib.contextmanager
    def alone(self, subject: Subject) -> Iterator[Any]:
        """Yield the model; within the block it computes what this subject computes."""
        if not isinstance(self.model, PeftModel):
            yield self.model
            return
        if not subject.slot:
            with self.model.disable_adapter():
                yield self.model
            return
        self.model.set_adapter(subject.slot, inference_mode=True)
        before = _copies(subject.embeddings)
        set_embeddings(subject.embeddings)
        try:
            yield self.model
        finally:
            set_embeddings(before)


def open_lineup(settings: EvalSettings, adapters: Sequence[str], runs: str) -> Lineup:
    """Return the base with the adapters of these names attached.

    Raises:
        AdapterError: there is no adapter of a name, it cannot be read, or does not fit the base.
        ModelError: the base cannot be read.
    """
    folders = [find_adapter(name, runs) for name in adapters]
    base = load_base(settings.model, settings.dtype, allow_pickle=settings.allow_pickle)
    task = causal_lm(base)
    subjects = [Subject("base")]
    model: Any = base.model
    for number, (name, folder) in enumerate(zip(adapters, folders, strict=True)):
        stored = read_adapter(folder, allow_pickle=settings.allow_pickle)
        pairs = split_embeddings(base.model, stored.config, stored.tensors)[1]
        slot = f"adapter{number}"
        before = _copies(pairs)
        if isinstance(model, PeftModel):
            model.load_adapter(folder, slot, allow_pickle=settings.allow_pickle)
        else:
            model = PeftModel.from_pretrained(model, folder, slot, allow_pickle=settings.allow_pickle)
        # Attaching leaves an adapter's embeddings in the base, which the others are to have as it was.
        set_embeddings(before)
        template = template_of(folder)
        # One that was trained on text knows no template.
        own = "auto" if template == "none" else template
        subjects.append(Subject(name, stored.digest()[:12], own, slot, tuple(pairs)))
    return Lineup(base, _digest(base), model, task, tuple(subjects))


def _copies(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(place, place.detach().clone()) for place, _ in pairs]


def _digest(base: BaseModel) -> str:
    """Return what tells this base from another one of its name.

    On the hub that is the commit. In a folder it is the small files, and the sizes and times of the weights:
    to read all of them could take longer than to measure.
    """
    where = DEMO_BASE if base.name == DEMO and not Path(DEMO).exists() else Path(base.name)
    sha = hashlib.sha256(f"{base.name} {getattr(base.model.config, '_commit_hash', None)}".encode())
    for path in sorted(where.glob("*")) if where.is_dir() else ():
        if path.suffix in (".json", ".jinja"):
            sha.update(path.read_bytes())
        elif path.suffix in (".safetensors", ".bin"):
            stat = path.stat()
            sha.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return sha.hexdigest()
