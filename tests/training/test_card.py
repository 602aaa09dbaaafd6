"""The card says what the adapter is, and the folder keeps how it was asked."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from loralab.adapters.habits import Habits, read_habits
from loralab.core.config import LoraConfig
from loralab.data.dataset import load_dataset
from loralab.data.findings import Code
from loralab.models import load_tokenizer
from loralab.serving.golden import verify_golden
from loralab.training.card import card
from loralab.training.checkpoint import Progress
from loralab.training.config import RunConfig
from loralab.training.habits import habits_of
from loralab.training.starting import start


@pytest.fixture
def adapter(settings: Callable[..., RunConfig]) -> Path:
    """The folder of an adapter that was trained for two steps."""
    run = start(settings(max_steps=2, save_steps=2))
    list(run.events())
    return run.folder.adapter


def test_the_card_of_a_run(adapter: Path, tiny_dir: Path) -> None:
    text = (adapter / "README.md").read_text(encoding="utf8")
    head = yaml.safe_load(text.split("---")[1])
    assert head == {
        "base_model": str(tiny_dir),
        "library_name": "peft",
        "tags": ["lora", "loralab"],
        "pipeline_tag": "text-generation",
    }
    for heading in ("Use", "Settings", "Data", "Results", "Licence"):
        assert f"\n## {heading}\n" in text
    assert "| rank, alpha | 4, 32 |" in text
    assert "| length, batch | 2 steps, 4 |" in text
    assert "23 examples" in text
    assert "S203" in text, "the run is short, and its card says so"


def test_the_card_has_the_hash_of_the_template_and_the_losses(train_file: Path, tiny: Any) -> None:
    tokenizer = tiny.make_tokenizer(chat=True)
    data = load_dataset(train_file, tokenizer)
    habits = habits_of(data, tokenizer)
    config = RunConfig(name="poet", model="some where/it's", data="a|b.jsonl", learning_rate=1e-3)
    progress = Progress(step=9, best_step=6, best_loss=1.0, base_loss=2.0)
    found = [Code("D999", "warning", "", "").found("a\nb")]
    text = card(config, data, progress, LoraConfig(r=4, use_rslora=True), found, habits)
    assert len(habits.template_sha256) == 64
    assert f"`{habits.template_sha256}`" in text
    assert "| validation loss, adapter | 1.0000 (perplexity 2.72) |" in text
    assert "| chosen step | 6 |" in text
    assert "- warning D999: a b" in text
    assert "4, 8, rsLoRA" in text
    assert "a\\|b.jsonl" in text
    assert yaml.safe_load(text.split("---")[1])["base_model"] == config.model


def test_the_python_of_the_card_runs(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adapter.parent)
    adapter.rename(adapter.parent / "run")
    (code,) = re.findall(r"```python\n(.*?)```", (adapter.parent / "run" / "README.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["model"].active_adapters == ["default"]


def test_an_adapter_is_asked_as_it_was_trained(adapter: Path, tiny_dir: Path) -> None:
    assert read_habits(adapter) == Habits("completion", "plain")
    assert verify_golden(adapter, load_tokenizer(str(tiny_dir))) is None


def test_an_adapter_on_another_tokenizer_is_doubted(adapter: Path, tiny: Any) -> None:
    other_end = verify_golden(adapter, tiny.make_tokenizer(chat=True))
    assert other_end is not None
    assert other_end.code == "A302", "it makes the same tokens of words, but ends answers with another"
    path = adapter / "loralab.json"
    values = json.loads(path.read_text())
    values["golden"]["text"][4] += 1
    path.write_text(json.dumps(values))
    found = verify_golden(adapter, tiny.make_tokenizer())
    assert found is not None
    assert found.code == "A301"
    assert "token 5 " in found.text


def test_an_adapter_from_elsewhere_is_not_doubted(adapter: Path, tiny: Any, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(adapter, bare)
    (bare / "loralab.json").unlink()
    assert verify_golden(bare, tiny.make_tokenizer()) is None


def test_no_row_of_the_data_is_kept_with_the_adapter(adapter: Path, train_file: Path) -> None:
    kept = (adapter / "loralab.json").read_text() + (adapter / "README.md").read_text()
    rows = [json.loads(line) for line in train_file.read_text().splitlines()]
    assert not [row for row in rows if len(row["completion"]) > 20 and row["completion"] in kept]


def test_habits_of_documents_and_of_a_template_file(tiny: Any, tmp_path: Path) -> None:
    tokenizer = tiny.make_tokenizer(chat=True)
    texts = tiny.write_jsonl(tmp_path / "texts.jsonl", [{"text": "the dog ran"}] * 3)
    habits = habits_of(load_dataset(texts, tokenizer), tokenizer)
    assert (habits.format, habits.template, habits.template_sha256) == ("text", "auto", "")
    assert list(habits.golden) == ["text"]
