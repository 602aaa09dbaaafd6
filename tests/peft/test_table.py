"""The page that lists PEFT's names is what the code says."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "peft_table.py"))
    written = (ROOT / "docs" / "peft-table.md").read_text(encoding="utf8")
    assert script["page"]() == written, "run: python scripts/peft_table.py"


def test_every_note_is_of_a_name() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "peft_table.py"))
    names = {name for _, make in script["SECTIONS"].values() for name, _, _ in make()}
    for table in (
        "SETTINGS",
        "LIMITED",
        "METHODS",
        "ABSENT",
        "LAYERS",
        "INITS",
        "COMBINED",
        "FUNCTIONS",
        "NOTED",
    ):
        assert set(script[table]) <= names | {"True"}, table
