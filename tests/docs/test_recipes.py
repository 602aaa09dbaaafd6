"""The recipes: valid settings, explained, and taken by the command line as their first lines say."""

import json
import re
from pathlib import Path

import pytest

from loralab.cli.main import main
from loralab.training.config import RunConfig, check, read_toml
from loralab.training.folder import RunFolder

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
TEXT = "A small boat lay in the water. A bird sat on it and sang.\n"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_explained(path: Path) -> None:
    values = read_toml(path)
    config = check(values, where=path.name)
    for name in ("model", "data", "eval_data", "name"):
        assert name not in values, f"{name} is the user's to choose"
    chosen = {n for n, v in values.items() if v != RunConfig.model_fields[n].default}
    assert chosen, "a recipe that changes no default is none"
    assert config.batch_size % config.micro == 0
    text = path.read_text(encoding="utf8")
    assert f"recipes/{path.name}" in text.splitlines()[1], "the second line says how to use it"
    for paragraph in text.split("\n\n"):
        assert paragraph.startswith("# "), f"no reason given: {paragraph}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = json.dumps({"prompt": "Who sang?", "completion": "A bird."})
    Path("ROWS.jsonl").write_text(f"{row}\n" * 3, encoding="utf8")
    Path("HELD_OUT.jsonl").write_text(f"{row}\n", encoding="utf8")
    Path("TEXT.txt").write_text(TEXT * 30, encoding="utf8")
    command = path.read_text(encoding="utf8").splitlines()[1].removeprefix("#").split()
    assert command[0] == "loralab"
    words = [re.sub(r"^recipes/", f"{path.parent}/", word) for word in command[1:]]
    words[words.index("MODEL")] = "demo"
    with pytest.raises(SystemExit) as end:
        main([*words, "--name", "tried", "--max-steps", "1"])
    assert not end.value.code
    run = RunFolder(tmp_path / "runs" / "tried")
    assert run.state().state == "finished"
    assert run.config().r == read_toml(path)["r"]
