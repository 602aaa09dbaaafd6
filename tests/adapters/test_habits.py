"""An adapter remembers how it is spoken to, with a template that was a file in its own folder."""

from pathlib import Path

import pytest

from loralab.adapters.habits import (
    HABITS_FILE,
    TEMPLATE_FILE,
    Habits,
    read_habits,
    template_of,
    write_habits,
)
from loralab.errors import AdapterError

JINJA = "{% for m in messages %}{{ m.content }}<é>{% endfor %}\n"


@pytest.mark.parametrize(
    "habits",
    [
        Habits(),
        Habits("alpaca", "llama-3"),
        Habits("messages", TEMPLATE_FILE, jinja=JINJA),
        Habits("my.json", "bare", prompt=("Q: ", "\nA:")),
    ],
)
def test_written_then_read(tmp_path: Path, habits: Habits) -> None:
    write_habits(tmp_path, habits)
    assert read_habits(tmp_path) == habits
    assert hash(read_habits(tmp_path)) == hash(habits)
    assert (tmp_path / TEMPLATE_FILE).is_file() is bool(habits.jinja)


def test_what_is_not_compared_is_kept_too(tmp_path: Path) -> None:
    write_habits(tmp_path, Habits(template_sha256="ab", golden={"text": [1, 2]}))
    habits = read_habits(tmp_path)
    assert (habits.template_sha256, habits.golden) == ("ab", {"text": [1, 2]})


def test_a_template_of_a_file_is_the_adapters_own(tmp_path: Path) -> None:
    write_habits(tmp_path, Habits("messages", "elsewhere/mine.jinja", jinja=JINJA))
    assert (tmp_path / TEMPLATE_FILE).read_text(encoding="utf8") == JINJA
    assert read_habits(tmp_path) == Habits("messages", TEMPLATE_FILE, jinja=JINJA)
    assert template_of(tmp_path) == str(tmp_path / TEMPLATE_FILE)
    (tmp_path / TEMPLATE_FILE).unlink()
    with pytest.raises(AdapterError, match=r"chat_template\.jinja: missing"):
        read_habits(tmp_path)


def test_an_adapter_of_others_is_spoken_to_by_the_template_beside_it(tmp_path: Path) -> None:
    assert read_habits(tmp_path) == Habits()
    assert template_of(tmp_path) == "auto"
    (tmp_path / TEMPLATE_FILE).write_text(JINJA, encoding="utf8")
    assert read_habits(tmp_path) == Habits("auto", TEMPLATE_FILE, jinja=JINJA)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"formt": "text"}', '{"prompt": 3}', "\xff"])
def test_damaged_habits_are_told(tmp_path: Path, text: str) -> None:
    (tmp_path / HABITS_FILE).write_text(text, encoding="latin1")
    with pytest.raises(AdapterError, match=r"loralab\.json: damaged"):
        read_habits(tmp_path)
