"""What the README and the docs show runs as it stands.

Each page gets an empty folder and is gone through from top to bottom:

- a ``python`` block is executed; all blocks of a page share their names;
- in a ``console`` block every ``$ loralab ...`` is run. Lines that begin with ``you> `` are typed into it, a
  line ``^C`` is a Ctrl-C after the line above it, and the output shown must be the kind of output that came;
- a block below ``<!-- file: NAME -->`` is saved under that name;
- a block below ``<!-- not run: REASON -->`` is left alone.
"""

import io
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loralab.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SLOW = {"tour.md", "train.md", "follow.md", "sweep.md", "many.md", "serve.md"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it begins at, and the comment above it."""

    language: str
    text: str
    line: int
    note: str = ""
    value: str = ""


@dataclass
class Command:
    """A command of a console block, what is shown below it, and what is typed into it."""

    words: list[str]
    shown: list[str] = field(default_factory=list)

    @property
    def typed(self) -> str:
        return "".join(line.removeprefix("you> ") + "\n" for line in self.shown if line.startswith("you> "))

    @property
    def printed(self) -> list[str]:
        others = [line for line in self.shown if line.strip() and not line.startswith(("you> ", "^C"))]
        return [line for line in others if line != "..."]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = iter(enumerate(page.read_text(encoding="utf8").splitlines(), start=1))
    note = value = ""
    for number, line in lines:
        comment = re.fullmatch(r"<!-- (file|not run): (.+) -->", line)
        if comment:
            note, value = comment.groups()
        elif line.startswith("```"):
            inside = []
            for _, text in lines:
                if text.startswith("```"):
                    break
                inside.append(text)
            yield Block(line[3:].strip(), "\n".join(inside) + "\n", number, note, value)
            note = value = ""


def commands(block: Block) -> list[Command]:
    """The commands of a console block; one may go on behind a backslash."""
    found: list[Command] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append(Command(shlex.split(line[2:], comments=True)))
        elif found:
            found[-1].shown.append(line)
    return found


def kind(line: str) -> str:
    """The part of an output line that is the same in every run: up to a label's end or a number."""
    found = re.match(r"[^:>!\d\t]*[:>!\t]?", line)
    return found.group() if found else line


def in_process(command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command here; return what it printed, or its line of complaint, which must exit with 2."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(command.typed))
    capsys.readouterr()
    code: object = 0
    try:
        main(command.words[1:])
    except SystemExit as end:
        code = end.code or 0
    printed, complaint = capsys.readouterr()
    refused = any(line.startswith("loralab: ") for line in command.printed)
    assert code == (2 if refused else 0), complaint
    return complaint if refused else printed


def interrupted(command: Command) -> str:
    """Run a command in a process of its own and stop it as Ctrl-C does, once it is where the page shows."""
    above = command.shown[command.shown.index("^C") - 1].split("/")[0]
    arguments = [sys.executable, "-m", "loralab.cli", *command.words[1:]]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if line.startswith(above):
                process.send_signal(signal.SIGINT)
    # A server ends as it should; other commands are interrupted.
    assert process.returncode == (0 if command.words[1] == "serve" else 130), "".join(printed)
    return "".join(printed)


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] if p.name in SLOW else [], id=p.name) for p in PAGES],
)
def test_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.note == "file":
            Path(block.value).write_text(block.text, encoding="utf8")
        elif block.note == "not run":
            continue
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
        elif block.language == "console":
            for command in commands(block):
                assert command.words[0] == "loralab", f"{where}: say why {command.words[0]!r} is not run"
                stopped = "^C" in command.shown
                output = interrupted(command) if stopped else in_process(command, monkeypatch, capsys)
                compare(command, output.splitlines(), where)


def compare(command: Command, printed: list[str], where: str) -> None:
    """Every line that the page shows has its like in what was printed; complaints to the letter."""
    for line in command.printed:
        if line.startswith("loralab: "):
            assert printed == [line], where
        else:
            like = any(text.startswith(kind(line)) for text in printed)
            assert like, f"{where}: {shlex.join(command.words)} printed no line like {line!r}:\n" + "\n".join(
                printed
            )


def test_every_block_is_understood() -> None:
    known = {"python", "console"}
    for page in PAGES:
        for block in blocks(page):
            left_alone = block.language in ("", "text", "json", "toml", "csv", "jinja")
            assert block.language in known or left_alone, f"{page.name}:{block.line}: {block.language!r}"
            if block.language == "console":
                assert block.text.startswith("$ "), f"{page.name}:{block.line}: no command"


def test_the_pages_have_something_to_run() -> None:
    found = {
        page.name: {block.language for block in blocks(page) if block.note != "not run"} for page in PAGES
    }
    for name, languages in found.items():
        read_only = ("glossary.md", "house.md", "performance.md", "quality.md")
        assert name in read_only or languages & {"python", "console"}, name
