"""How an adapter was trained to be spoken to, kept beside it in ``loralab.json``."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from loralab.errors import AdapterError
from loralab.files import write_json

__all__ = ["HABITS_FILE", "Habits", "read_habits", "write_habits"]

HABITS_FILE = "loralab.json"


@dataclass(frozen=True)
class Habits:
    """The format and the template of the training data: what serves the adapter writes prompts alike."""

    format: str = "auto"
    template: str = "auto"
    """A template's name; "auto" leaves it to the tokenizer and the format."""


def write_habits(folder: Path, habits: Habits) -> None:
    """Write the habits of an adapter into its folder."""
    write_json(folder / HABITS_FILE, dataclasses.asdict(habits))


def read_habits(folder: Path) -> Habits:
    """Return the habits of the adapter in `folder`; of one made elsewhere, "auto" for everything.

    Raises:
        AdapterError: the file is damaged.
    """
    path = folder / HABITS_FILE
    if not path.is_file():
        return Habits()
    try:
        return Habits(**json.loads(path.read_text(encoding="utf8")))
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{path}: damaged ({error}).") from None
