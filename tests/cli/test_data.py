"""``loralab data``: findings, lengths and previews; its flags are the settings of a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from loralab.training.settings.data import DataSettings


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return path


def test_findings_come_first_and_then_lengths(loralab: Any, bench: Path) -> None:
    write(Path("same.jsonl"), [{"prompt": f"the dog {n}", "completion": "ran"} for n in range(30)])
    result = loralab("data", "same.jsonl", "--model", "tiny", "--show", 1)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].startswith("data: same.jsonl: 30 examples")
    assert lines[1].startswith("warning D152: 30 of 30 (100 %) rows have the same answer, 'ran'")
    assert lines[2].startswith("  balance the answers")
    bars = [line for line in lines if line.rstrip("0123456789").endswith("# ")]
    assert sum(int(line.split()[-1]) for line in bars) == 30
    assert any(line.startswith("fill: ") for line in lines)
    assert "«ran»" in result.out


def test_an_error_exits_with_2_and_json_has_all(loralab: Any, bench: Path) -> None:
    rows = [{"prompt": "a", "completion": ""}] * 3 + [{"prompt": "the dog", "completion": "ran"}]
    result = loralab("data", write(Path("blank.jsonl"), rows), "--model", "tiny", "--json")
    assert result.code == 2
    value = result.json
    assert [finding["code"] for finding in value["findings"]] == ["D105", "D101", "D161"]
    assert value["findings"][1]["where"] == ["blank.jsonl:1", "blank.jsonl:2", "blank.jsonl:3"]
    assert len(value["rejected"]) == 3
    assert sum(bar["examples"] for bar in value["lengths"]) == value["examples"] == 1
    assert value["fill"] == {"rows": 1.0, "packed": 1.0}


def test_what_is_shown_is_what_train_refuses(loralab: Any, bench: Path) -> None:
    rows = [{"prompt": "a", "completion": ""}] * 3 + [{"prompt": "the dog", "completion": "ran"}]
    write(Path("blank.jsonl"), rows)
    result = loralab("train", "--data", "blank.jsonl", "--model", "tiny", "--name", "blank", "--max-steps", 1)
    assert result.code == 2
    assert result.err.startswith("loralab: D105: 3 of 4 (75 %) rows are left out")
    assert result.err.count("\n") == 1
    assert not Path("runs/blank").exists()


def test_validation_data_is_compared(loralab: Any, bench: Path) -> None:
    result = loralab("data", "train.jsonl", "--eval-data", "train.jsonl", "--model", "tiny", "--json")
    assert result.code == 0
    assert "D112" in [finding["code"] for finding in result.json["findings"]]
    assert result.json["eval_data"]["examples"] == result.json["examples"]
    split = loralab("data", "train.jsonl", "--eval-split", 0.4, "--model", "tiny", "--json")
    assert split.json["examples"] + split.json["eval_data"]["examples"] == 12


def test_several_sources_have_a_table(loralab: Any, bench: Path) -> None:
    result = loralab("data", "train.jsonl + eval.jsonl", "--model", "tiny", "--show", 0)
    assert "\ntrain.jsonl\t12\t" in result.out
    assert "\neval.jsonl\t5\t" in result.out


def test_every_data_setting_is_a_flag(loralab: Any, bench: Path) -> None:
    help_ = loralab("data", "--help").out
    for name in DataSettings.model_fields:
        assert f"--{name.replace('_', '-')} " in help_


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name the data once"),
        (("train.jsonl", "--data", "train.jsonl"), "name the data once"),
        (("train.jsonl", "--show", -1), "show is -1; expected 0 or more"),
        (("train.jsonl", "--cutoff-length", 1), "cutoff_length"),
        (("train.jsonl", "--eval-split", 0.1, "--eval-data", "eval.jsonl"), "two ways to say"),
        (("trian.jsonl",), "Did you mean 'train.jsonl'"),
    ],
)
def test_a_mistake_is_one_line(loralab: Any, bench: Path, words: tuple[object, ...], message: str) -> None:
    result = loralab("data", *words, "--model", "tiny")
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1


def test_an_adapter_on_a_base_that_is_not_its_own_is_doubted(loralab: Any, bench: Path) -> None:
    path = bench / "runs" / "poet" / "adapter" / "loralab.json"
    asked = ("generate", "the dog", "--model", "tiny", "--adapter", "poet", "--max-new-tokens", 1)
    assert loralab(*asked).err == ""
    values = json.loads(path.read_text())
    values["golden"]["question"][0] += 1
    path.write_text(json.dumps(values))
    result = loralab(*asked)
    assert result.code == 0
    assert result.err.startswith("loralab: warning A302: the template is not the one")
    assert result.err.count("\n") == 1
