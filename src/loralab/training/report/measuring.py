"""What a report needs the model for: how it does on general text, and how large its weights are.

Shape key: T tokens of an example.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from loralab.adapters import PeftModel
from loralab.data.dataset import Reading, load_dataset
from loralab.data.types import Example
from loralab.errors import CheckpointError
from loralab.files import write_json
from loralab.models import BaseModel
from loralab.models.load import DEMO
from loralab.models.positions import max_positions
from loralab.training.loop import evaluate
from loralab.training.tasks import Task
from loralab.training.trainee import Trainee

__all__ = ["Effect", "General", "Measuring", "read_effect", "read_general"]

FILE = "effect.json"
_PAGE = Path(__file__).with_name("general.txt")
_DEMO_PAGE = Path(__file__).with_name("general_demo.jsonl")
_BLOCK = 256
"""Tokens that are seen at once. A base scores all of them, for each word of its vocabulary."""
_MOST = 16_384
"""Tokens of general text that are looked at: enough for a loss that is good to two digits."""


@dataclass(frozen=True)
class General:
    """General text, which has nothing to do with the run's data."""

    source: str
    examples: Sequence[Example]
    tokens: int
    left: int
    """Tokens of the text that are not looked at, as it is longer than need be."""


@dataclass(frozen=True)
class Effect:
    """What was measured while the model was there. Losses are in nats a token."""

    general: str
    """Where the general text is from; "" for the page that comes with loralab."""
    tokens: int
    left: int
    base_loss: float
    """Loss of the base on the general text."""
    base_choices: list[int]
    """The token that the base finds likeliest, at each place of the general text."""
    loss: float | None = None
    """Loss of what was trained; None until the run is finished."""
    changed: float | None = None
    """Share of the places where what was trained finds another token likeliest than the base."""
    weight_norms: dict[str, float] = field(default_factory=dict)
    """The Frobenius norm of each adapted weight of the base, by module."""


def read_general(path: str | None, base: BaseModel) -> General:
    """Return the text that forgetting is measured on: the user's, or a page that comes with loralab.

    Raises:
        DataError: the file is missing or malformed.
        ConfigError: it cannot be written in the base's template.
    """
    positions = max_positions(base.model.config) or _BLOCK
    page = _DEMO_PAGE if base.name == DEMO else _PAGE
    data = load_dataset(path or page, base.tokenizer, Reading(cutoff_length=min(_BLOCK, positions)))
    total = 0

    def fits(example: Example) -> bool:
        nonlocal total
        total += len(example.ids)
        return total <= _MOST or total == len(example.ids)

    examples = list(takewhile(fits, data.examples))
    tokens = sum(example.trained for example in examples)
    return General(path or "", examples, tokens, data.trained_tokens - tokens)


@dataclass(frozen=True)
class Measuring:
    """Measures what a run trains before its first step and after its last; keeps it in ``effect.json``."""

    folder: Path
    trainee: Trainee
    task: Task
    general: General
    micro_batch: int
    writes: bool = True
    """Of several processes that pass through the model together, one writes."""

    def before(self) -> None:
        """Measure the base alone. To be called before the first step: some bases are not there any more then.

        Raises:
            CheckpointError: the file cannot be written.
        """
        with self.trainee.alone(), self.trainee.without():
            loss, choices = self._measure()
        general = self.general
        self._write(Effect(general.source, general.tokens, general.left, loss, choices))

    def after(self) -> None:
        """Measure what was trained, as it is on the model now.

        Raises:
            CheckpointError: what `before` measured is missing or damaged, or the file cannot be written.
        """
        found = read_effect(self.folder)
        if found is None:
            raise CheckpointError(f"{self.folder / FILE} is missing: the base was not measured.")
        with self.trainee.alone():
            loss, choices = self._measure()
        pairs = list(zip(choices, found.base_choices, strict=False))
        changed = sum(now != before for now, before in pairs) / max(1, len(pairs))
        norms = _weight_norms(self.trainee.model)
        self._write(dataclasses.replace(found, loss=loss, changed=changed, weight_norms=norms))

    def _measure(self) -> tuple[float, list[int]]:
        model, examples = self.trainee.model, self.general.examples
        loss, _ = evaluate(model, self.task, examples, self.micro_batch)
        return loss, [choice for example in examples for choice in _choices(model, example)]

    def _write(self, effect: Effect) -> None:
        if self.writes:
            write_json(self.folder / FILE, dataclasses.asdict(effect))


def read_effect(folder: Path) -> Effect | None:
    """Return what was measured of a run; None where nothing was.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / FILE
    try:
        return Effect(**json.loads(path.read_text(encoding="utf8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}).") from None


@torch.no_grad()
def _choices(model: Any, example: Example) -> list[int]:
    """Return the likeliest token behind each token of an example."""
    was_training = model.training
    model.eval()
    ids_1T = torch.tensor([example.ids], device=next(model.parameters()).device)
    found: list[int] = model(input_ids=ids_1T, use_cache=False).logits[0].argmax(-1).tolist()
    model.train(was_training)
    return found


def _weight_norms(model: Any) -> dict[str, float]:
    if not isinstance(model, PeftModel):
        return {}
    return {
        path: float(torch.linalg.vector_norm(layer.dense_weight(), dtype=torch.float32))
        for path, layer in model.base_model.lora_layers.items()
    }
