"""The pages say what is there: links, folders, words, fields of files, refused settings."""

import dataclasses
import json
import re
import runpy
from pathlib import Path
from typing import get_args

import pytest

from loralab.cli.commands import REGISTRY as COMMANDS
from loralab.core import config as lora_config
from loralab.core.targets import PRESETS
from loralab.data import formats
from loralab.data.templates import TEMPLATES
from loralab.errors import ConfigError
from loralab.training import events
from loralab.training.config import RunConfig
from loralab.training.control import Control
from loralab.training.effort import EFFORTS
from loralab.training.report.report import write_report
from loralab.training.starting import start

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "dev" / "LOG.md"]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf8")


def prose_of(path: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(path), flags=re.MULTILINE | re.DOTALL)


def section(path: Path, title: str) -> str:
    """What stands below a heading, up to the next one of its level."""
    return re.split(r"^## ", text_of(path).split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def slugs(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def words_in_code(text: str) -> set[str]:
    return set(re.findall(r"`([\w.\-/]+)`", text))


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose_of(page)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not anchor or anchor in slugs(linked), target


def test_every_page_is_linked_from_the_readme() -> None:
    for page in DOCS.glob("*.md"):
        assert f"(docs/{page.name})" in text_of(ROOT / "README.md"), page.name


def test_the_tree_is_the_tree() -> None:
    tree = section(ROOT / "README.md", "The tree")
    shown = re.findall(r"^(  )?([\w./]+)  +\w", tree, re.MULTILINE)
    for indent, name in shown:
        assert (ROOT / ("src/loralab" if indent else "") / name).exists(), name
    package = ROOT / "src" / "loralab"
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert folders <= {name for indent, name in shown if indent}


def test_paths_in_the_docs_exist() -> None:
    for page in (DOCS / "house.md", ROOT / "CONTRIBUTING.md"):
        for path in re.findall(r"`((?:\w+/)+(?:\w+\.(?:py|md))?)`", text_of(page)):
            places = (ROOT / path, ROOT / "src" / "loralab" / path)
            assert any(place.exists() for place in places), f"{page.name}: {path}"


def test_every_floor_has_its_line() -> None:
    floors = section(DOCS / "house.md", "Floors")
    package = ROOT / "src" / "loralab"
    for path in [*package.glob("*/__init__.py"), package / "errors.py", package / "files.py"]:
        name = path.parent.name if path.name == "__init__.py" else path.stem
        assert re.search(rf"^{name} ", floors, re.MULTILINE), name


def glossary() -> list[list[str]]:
    """The rows of the glossary's tables: word, meaning, words not used for it."""
    lines = text_of(DOCS / "glossary.md").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in rows if row[0] != "word" and not row[0].startswith("---")]


@pytest.mark.parametrize("row", glossary(), ids=lambda row: row[0])
def test_a_word_of_the_glossary_is_used_and_its_rivals_are_not(row: list[str]) -> None:
    pages = [page for page in PAGES if page.name != "glossary.md"]
    code = (ROOT / "src" / "loralab").rglob("*.py")
    used = "\n".join(text_of(path) for path in (*pages, *code))
    prose = "\n".join(prose_of(page) for page in pages)
    words, _, rivals = row
    for word in words.split(", "):
        assert re.search(rf"\b{word}", used, re.IGNORECASE), f"nothing uses {word!r}"
    for rival in filter(None, rivals.split(", ")):
        assert not re.search(rf"\b{rival}s?\b", prose, re.IGNORECASE), f"a page says {rival!r} for {words!r}"


def test_the_refused_settings_are_those_of_the_config() -> None:
    shown = section(DOCS / "peft.md", "What is refused").split("\n\n")[1]
    assert words_in_code(shown) == set(lora_config._OFF)
    for name in words_in_code(shown):
        with pytest.raises(ConfigError, match=name):
            lora_config.LoraConfig(**{name: {"on": 1}})


def test_the_data_page_has_every_format_and_template() -> None:
    table = section(DOCS / "data.md", "Formats")
    for name in formats.names():
        entry = formats.get(name)
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert {*entry.columns, *entry.optional} <= words_in_code(row), name
        assert name == "text" or f"`{entry.template}`" in row, name
    assert set(TEMPLATES) - {"auto"} <= words_in_code(section(DOCS / "data.md", "Templates"))


def test_names_in_the_pages_are_known() -> None:
    for page in PAGES:
        for command in re.findall(r"\bloralab ([a-z]+)\b", "".join(re.findall(r"`[^`\n]+`", prose_of(page)))):
            assert command in COMMANDS.names, f"{page.name}: loralab {command}"
    assert set(PRESETS) <= words_in_code(text_of(DOCS / "peft.md"))


def test_the_training_page_has_the_settings_as_they_are() -> None:
    page = text_of(DOCS / "train.md")
    assert runpy.run_path(str(ROOT / "scripts" / "settings.py"))["written"](page) == page, (
        "the settings have changed: python scripts/settings.py"
    )
    tables = re.findall(r"<!-- settings: \w+ -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert set(RunConfig.model_fields) == set(re.findall(r"^\| `(\w+)` \|", "".join(tables), re.MULTILINE))


def test_the_training_page_has_every_choice() -> None:
    page = text_of(DOCS / "train.md")
    for name in ("optimizer", "lr_scheduler", "init"):
        assert set(get_args(RunConfig.model_fields[name].annotation)) <= words_in_code(page), name
    for effort, chosen in EFFORTS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{effort}`"))
        values = {"epochs": RunConfig().epochs, "r": RunConfig().r, **chosen}
        assert f"| {values['epochs']:g} | {values['r']} |" in row
        assert ("embeddings" in row) is ("embeddings" in str(chosen.get("target_modules")))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with validation data, a rejected row, samples, a report and a wish."""
    folder = tmp_path_factory.mktemp("pages")
    row = {"prompt": "What do bees make?", "completion": "Honey."}
    lines = [json.dumps(row), json.dumps(row | {"completion": ""})]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf8")
    (folder / "prompts.txt").write_text("What do cows make?\n", encoding="utf8")
    data = str(folder / "rows.jsonl")
    config = RunConfig(
        name="bees",
        model="demo",
        data=data,
        eval_data=data,
        runs=str(folder),
        max_steps=2,
        sample_prompts=str(folder / "prompts.txt"),
        report_to="csv",
    )
    run = start(config)
    for _ in run.events():
        pass
    Control(run.folder.path).ask(saves=1)
    write_report(run.folder)
    return run.folder.path


FILES = ("plan.json", "run.json", "control.json", "effect.json", "training.json", "loralab.json")
"""The files of a run whose fields the page has."""


def test_the_run_page_names_every_file_and_field(run_folder: Path) -> None:
    page = DOCS / "run-folder.md"
    named = words_in_code(text_of(page)) | set(re.findall(r"^  ([\w.]+/?)  ", text_of(page), re.MULTILINE))
    found = [path for path in run_folder.rglob("*") if path.is_file()]
    assert {*FILES, "metrics.csv", "report.md", "loss.svg"} <= {path.name for path in found}
    for path in found:
        place = path.relative_to(run_folder).parts[0] + ("/" if path.parent != run_folder else "")
        assert place in named, path
        assert path.name in named, path
        if path.name in FILES:
            assert set(json.loads(path.read_text(encoding="utf8"))) <= named, path.name
    lines = (run_folder / "rejected.jsonl").read_text(encoding="utf8").splitlines()
    assert {key for line in lines for key in json.loads(line)} <= named
    assert set((run_folder / "metrics.csv").read_text(encoding="utf8").splitlines()[0].split(",")) <= named
    kinds = {kind.__name__.lower(): kind for kind in events.Event.__subclasses__()}
    assert {*kinds, *(f.name for kind in kinds.values() for f in dataclasses.fields(kind))} <= named


def test_the_run_page_shows_every_file_as_it_is(run_folder: Path) -> None:
    page = DOCS / "run-folder.md"
    shown = [
        json.loads(text) for text in re.findall(r"```json\n(\{.*?\})\n```", text_of(page), re.DOTALL)[:-1]
    ]
    places = [run_folder / name for name in FILES[:4]]
    places += [run_folder / "checkpoints/000002/training.json", run_folder / "adapter/loralab.json"]
    written = [json.loads(path.read_text(encoding="utf8")) for path in places]
    for name in ("rejected.jsonl", "events.jsonl"):
        written += [json.loads(line) for line in (run_folder / name).read_text(encoding="utf8").splitlines()]
    for kind in (events.Paused, events.Interrupted, events.Noted, events.Failed):
        fields = {field.name: None for field in dataclasses.fields(kind)}
        written.append({"time": 0.0, "event": kind.__name__.lower(), **fields})
    keys = {(value.get("event"), *sorted(value)) for value in written}
    assert {(value.get("event"), *sorted(value)) for value in shown} == keys


def test_the_run_page_shows_complete_settings() -> None:
    page = section(DOCS / "run-folder.md", "config.toml")
    shown = set(re.findall(r"^(\w+) = ", page, re.MULTILINE)) | words_in_code(page)
    assert set(RunConfig.model_fields) <= shown
