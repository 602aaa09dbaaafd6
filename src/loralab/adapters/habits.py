"""How an adapter was trained to be spoken to, kept beside it in ``loralab.json``."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loralab.errors import AdapterError
from loralab.files import write_json, write_text

__all__ = ["HABITS_FILE", "TEMPLATE_FILE", "Habits", "read_habits", "template_of", "write_habits"]

HABITS_FILE = "loralab.json"
TEMPLATE_FILE = "chat_template.jinja"
"""Where a chat template in Jinja stands beside an adapter; transformers gives it that name too."""


@dataclass(frozen=True)
class Habits:
    """The format and the template of the training data: what serves the adapter writes prompts alike."""

    format: str = "auto"
    template: str = "auto"
    """A template's name; "auto" leaves it to the tokenizer and the format."""
    template_sha256: str = field(default="", compare=False)
    """The hash of what the template is or writes."""
    golden: dict[str, list[int]] = field(default_factory=dict, compare=False)
    """The ids that training made of fixed prompts, by their names."""
    jinja: str = ""
    """The text of the template, if it was a file of Jinja; `template` is the file's name then."""
    prompt: tuple[str, ...] = ()
    """What a user's words stand between, where a format file wrote the prompts: ``words.join(prompt)``."""


def write_habits(folder: Path, habits: Habits) -> None:
    """Write the habits of an adapter into its folder, and the template too if it was a file."""
    values: dict[str, Any] = dataclasses.asdict(habits)
    if values.pop("jinja"):
        write_text(folder / TEMPLATE_FILE, habits.jinja)
        values["template"] = TEMPLATE_FILE
    write_json(folder / HABITS_FILE, values)


def read_habits(folder: Path) -> Habits:
    """Return the habits of the adapter in `folder`.

    One made elsewhere has "auto" for everything, but for the chat template that lies beside it, if one does.

    Raises:
        AdapterError: a file is damaged or missing.
    """
    path = folder / HABITS_FILE
    if not path.is_file():
        text = _read(folder / TEMPLATE_FILE) if (folder / TEMPLATE_FILE).is_file() else ""
        return Habits(template=TEMPLATE_FILE, jinja=text) if text.strip() else Habits()
    try:
        values = json.loads(_read(path))
        habits = Habits(**{**values, "prompt": tuple(map(str, values.get("prompt", ())))})
    except (AttributeError, ValueError, TypeError) as error:
        raise AdapterError(f"{path}: damaged ({error}).") from None
    if habits.template != TEMPLATE_FILE:
        return habits
    return dataclasses.replace(habits, jinja=_read(folder / TEMPLATE_FILE))


def template_of(folder: Path) -> str:
    """Return the template of the adapter in `folder` as the setting `template` names it.

    Raises:
        AdapterError: as `read_habits`.
    """
    habits = read_habits(folder)
    return str(folder / TEMPLATE_FILE) if habits.jinja else habits.template


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf8")
    except FileNotFoundError:
        raise AdapterError(f"{path}: missing; the adapter's prompts are written by it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path}: damaged ({error}).") from None
