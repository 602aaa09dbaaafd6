"""A base model with or without an adapter, loaded to be spoken to."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loralab.adapters import PeftModel
from loralab.adapters.habits import Habits, read_habits
from loralab.adapters.store import find_adapter
from loralab.cli.options import Voice
from loralab.data.findings import Finding
from loralab.data.types import Message
from loralab.models import BaseModel, load_base
from loralab.serving.generate import Sampling, stream
from loralab.serving.golden import verify_golden

__all__ = ["Speaker"]


@dataclass(frozen=True)
class Speaker:
    """Answers prompts with the adapter, or with the base alone."""

    base: BaseModel
    model: Any
    habits: Habits
    doubt: Finding | None = None
    """What speaks against the adapter being asked as it was trained."""

    @classmethod
    def load(cls, voice: Voice) -> "Speaker":
        """Load a base, and an adapter on it. Raises as the parts do."""
        folder = find_adapter(voice.adapter, voice.runs) if voice.adapter else None
        base = load_base(voice.model, voice.dtype, allow_pickle=voice.allow_pickle)
        if folder is None:
            return cls(base, base.model, Habits())
        adapted = PeftModel.from_pretrained(base.model, folder, allow_pickle=voice.allow_pickle)
        return cls(base, adapted, read_habits(folder), verify_golden(folder, base.tokenizer))

    def answer(
        self, prompt: str | Sequence[Message], sampling: Sampling, *, alone: bool = False, raw: bool = False
    ) -> Iterator[str]:
        """Yield the answer in pieces; `alone` is the base without the adapter, `raw` continues the text."""
        habits = Habits(format="text") if raw else self.habits
        switched_off = alone and isinstance(self.model, PeftModel)
        with self.model.disable_adapter() if switched_off else contextlib.nullcontext():
            yield from stream(self.model, self.base.tokenizer, prompt, habits, sampling)
