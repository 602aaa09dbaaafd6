"""``loralab eval``: a table that grows, with everything that can be measured in it."""

import csv
import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loralab.training.evaluation import harness

EVAL = ("eval", "--model", "tiny", "--data", "eval.jsonl")
TEXT = (*EVAL[:3], "--data", "a.txt")
TABLE = Path("runs/evaluations.csv")


@pytest.fixture
def second(bench):
    """An adapter, "louder", that is twice the run's."""
    shutil.copytree("runs/poet/adapter", "louder")
    tensors = load_file("louder/adapter_model.safetensors")
    doubled = {key: tensor * (2 if "lora_B" in key else 1) for key, tensor in tensors.items()}
    save_file(doubled, "louder/adapter_model.safetensors", metadata={"format": "pt"})


def table() -> list[dict[str, str]]:
    with TABLE.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_base_and_adapters_stand_in_one_table(bench, second, loralab):
    found = loralab(*EVAL, "--adapter", "poet", "--adapter", "louder", "--comment", "first", "--json").json
    assert found["table"] == str(TABLE)
    assert [row["adapter"] for row in found["rows"]] == ["base", "poet", "louder"]
    assert not any(row["known"] for row in found["rows"])
    assert len({row["loss"] for row in found["rows"]}) == 3
    for row, written in zip(found["rows"], table(), strict=True):
        assert row["perplexity"] == pytest.approx(float(torch.tensor(row["loss"]).exp()), rel=1e-5)
        assert (row["model"], row["data"], row["rows"]) == ("tiny", "eval.jsonl", 5)
        assert {name: str(value) for name, value in row.items() if name != "known"} == written
        assert row["comment"] == "first"
    for name in ("poet", "louder"):
        alone = loralab(*EVAL, "--adapter", name, "--table", "other.csv", "--json").json["rows"]
        together = next(row for row in found["rows"] if row["adapter"] == name)
        assert alone[1]["loss"] == together["loss"]


def test_what_is_known_is_not_measured_again(bench, loralab):
    first = loralab(*EVAL, "--adapter", "poet", "--json").json["rows"]
    before = TABLE.read_bytes()
    told = loralab(*EVAL, "--adapter", "runs/poet/adapter", "--plain").out
    assert told.count("is in the table since") == 2
    assert "0 rows added" in told
    assert TABLE.read_bytes() == before
    known = loralab(*EVAL, "--adapter", "runs/poet/adapter", "--json").json["rows"]
    assert [row["known"] for row in known] == [True, True]
    assert [(row["loss"], row["key"]) for row in known] == [(row["loss"], row["key"]) for row in first]
    again = loralab(*EVAL, "--again", "--json").json["rows"]
    assert [(row["known"], row["loss"]) for row in again] == [(False, first[0]["loss"])]
    assert [row["adapter"] for row in table()] == ["base", "poet", "base"]


@pytest.mark.parametrize(
    "change",
    [
        ("--limit", 3),
        ("--template", "chatml"),
        ("--cutoff-length", 60),
        ("--dtype", "bfloat16"),
        ("--metrics", "exact"),
        "data",
        "base",
    ],
    ids=str,
)
def test_what_changes_the_numbers_is_measured(bench, tiny, loralab, change):
    loralab(*EVAL)
    if change == "data":
        tiny.write_jsonl(bench / "eval.jsonl", tiny.make_rows(5, seed=3))
    elif change == "base":
        tiny.write_base(bench / "tiny", seed=5)
    found = loralab(*EVAL, *(() if isinstance(change, str) else change), "--json").json["rows"]
    assert [row["known"] for row in found] == [False]
    assert len(table()) == 2


def test_a_comment_reaches_rows_that_are_known(bench, loralab):
    loralab(*EVAL, "--comment", "old")
    loralab(*EVAL, "--comment", "new")
    loralab(*EVAL)
    assert [row["comment"] for row in table()] == ["new"]


def test_the_table_is_shown_without_measuring(bench, loralab):
    assert "nothing was measured yet" in loralab("eval", "--show").out
    loralab(*EVAL, "--adapter", "poet", "--comment", "mine")
    columns, *rows = (line.split("\t") for line in loralab("eval", "--show").out.splitlines())
    assert columns[1:5] == ["model", "adapter", "data", "rows"]
    assert columns[-1] == "comment"
    assert [row[2] for row in rows] == ["base", "poet"]
    assert [row[-1] for row in rows] == ["mine", "mine"]
    assert [row["adapter"] for row in loralab("eval", "--show", "--json").json["rows"]] == ["base", "poet"]


def test_each_adapter_is_measured_in_its_own_template(bench, loralab):
    shutil.copytree("runs/poet/adapter", "chatty-one")
    habits = json.loads(Path("chatty-one/loralab.json").read_text())
    Path("chatty-one/loralab.json").write_text(json.dumps(habits | {"template": "chatml"}))
    rows = loralab(*EVAL, "--adapter", "poet", "--adapter", "chatty-one", "--json").json["rows"]
    assert [(row["adapter"], row["template"]) for row in rows] == [
        ("base", "plain"),
        ("poet", "plain"),
        ("base", "chatml"),
        ("chatty-one", "chatml"),
    ]
    one = loralab(*EVAL, "--adapter", "poet", "--adapter", "chatty-one", "--template", "plain", "--json").json
    assert [row["template"] for row in one["rows"]] == ["plain"] * 3


def test_text_is_measured_through_windows(bench, loralab):
    Path("long.txt").write_text("the little dog ran to a big tree\n" * 30)
    text = ("eval", "--model", "tiny", "--data", "long.txt", "--adapter", "poet")
    told = loralab(*text, "--max-length", 32, "--stride", 8).out
    assert "windows of up to 32 tokens, stride 8" in told
    usual = loralab(*text, "--json").json["rows"]
    assert [(row["max_length"], row["stride"]) for row in usual] == [(128, 64), (128, 64)]
    # The first two are of the finer windows; every way scores the same tokens.
    tokens = {row["tokens"] for row in table()}
    assert len(table()) == 4
    assert len(tokens) == 1
    cut = loralab(*text, "--hard-cut-string", r"\n", "--json").json["rows"]
    assert cut[0]["rows"] == 30
    assert cut[0]["loss"] > usual[0]["loss"] - 5


def test_answers_are_scored_and_written_down(bench, loralab):
    Path("eval.jsonl").write_text(
        '{"prompt": "the dog", "completion": "ran"}\n'
        '{"prompt": "the dog", "completion": "sat"}\n'
        '{"prompt": "a big tree", "completion": "in the sun"}\n'
    )
    metrics = ("--metrics", "rouge, exact,bleu,chrf,nist", "--max-new-tokens", 9)
    found = loralab(*EVAL, "--adapter", "poet", *metrics, "--json").json
    for row in found["rows"]:
        for name in ("exact", "bleu", "chrf", "nist", "rouge1", "rouge2", "rougeL"):
            assert row[name] >= 0
        lines = (Path(found["table"]).parent / row["answers"]).read_text(encoding="utf8").splitlines()
        first, second = map(json.loads, lines)
        assert (first["source"], first["references"]) == ("eval.jsonl:1", ["ran", "sat"])
        assert second["references"] == ["in the sun"]
        assert first["prompt"].startswith("the dog")
    said = loralab("generate", "a big tree", *EVAL[1:3], "--adapter", "poet", "--max-new-tokens", 9, "--json")
    assert second["answer"] == said.json["text"].strip()
    again = loralab(*EVAL, "--adapter", "poet", *metrics)
    assert again.out.count("answers: runs/evaluations-answers/") == 2
    assert len(table()) == 2


def test_a_perfect_answer_scores_in_full(bench, loralab):
    asked = loralab(*EVAL, "--adapter", "poet", "--metrics", "exact", "--max-new-tokens", 12, "--json").json
    lines = (Path("runs") / asked["rows"][1]["answers"]).read_text(encoding="utf8").splitlines()
    right = [each for each in map(json.loads, lines) if each["answer"]]
    rows = [{"prompt": each["prompt"].strip(), "completion": each["answer"]} for each in right]
    Path("right.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("--adapter", "poet", "--metrics", "exact", "--max-new-tokens", 12, "--json")
    found = loralab(*EVAL[:3], "--data", "right.jsonl", *arguments).json["rows"]
    assert right
    assert found[1]["exact"] == 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*EVAL, "--stride", 8), "stride has no effect: the data is rows"),
        ((*EVAL, "--max-new-tokens", 8), "max_new_tokens has no effect without --metrics"),
        ((*EVAL, "--metrics", "blue"), "unknown metric 'blue'.*Did you mean 'bleu'"),
        ((*EVAL, "--limit", 0), "limit is '0'"),
        ((*EVAL, "--max-length", 8, "--stride", 9), "stride 9 is longer than max_length 8"),
        (
            (*TEXT, "--max-length", 900),
            "max_length is 900, but tiny has 128 positions",
        ),
        ((*TEXT, "--stride", 129), "stride is 129, and the windows have 128 tokens"),
        ((*TEXT, "--cutoff-length", 9), "cutoff_length has no effect.*--max-length"),
        ((*TEXT, "--metrics", "bleu"), "metrics has no effect: raw text"),
        (EVAL[:3], "no data was given; add --data, or --tasks"),
        ((*EVAL, "--tasks", "x"), "both data and tasks are given"),
        ((*EVAL[:3], "--tasks", "x", "--stride", 3), "stride has no effect on --tasks"),
        ((*EVAL, "--adapter", "peot"), "no adapter 'peot'.*Did you mean 'poet'"),
        ((*EVAL, "--table", "eval.jsonl"), r"eval\.jsonl:1: no column 'model'"),
        ((*EVAL, "--show"), "--show prints the whole table"),
    ],
)
def test_what_cannot_be_measured_is_one_line(bench, loralab, arguments, said):
    Path("a.txt").write_text("the dog ran")
    found = loralab(*arguments)
    assert found.code == 2
    assert len(found.err.splitlines()) == 1
    assert re.search(said, found.err), found.err
    assert not TABLE.exists()


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval-harness is installed")
def test_tasks_need_the_harness(bench, loralab):
    assert "pip install lm_eval" in loralab(*EVAL[:3], "--tasks", "hellaswag").err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_the_harness_measures_the_adapter(bench, loralab):
    pytest.importorskip("lm_eval", reason="lm-eval-harness is not installed")
    rows = [{"q": "the little", "choices": [" dog", " sun"], "gold": 0}] * 4
    Path("rows.json").write_text("\n".join(map(json.dumps, rows)))
    Path("mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {bench}/rows.json\n"
        "test_split: test\noutput_type: loglikelihood_rolling\n"
        'doc_to_text: ""\ndoc_to_target: "{{q}}{{choices[0]}}"\n'
        "metric_list:\n  - metric: byte_perplexity\n"
    )
    arguments = (*EVAL[:3], "--tasks", "mine.yaml", "--adapter", "poet", "--json")
    base, poet = loralab(*arguments).json["rows"]
    assert base["byte_perplexity"] > poet["byte_perplexity"] > 1
    assert [row["known"] for row in loralab(*arguments).json["rows"]] == [True, True]
    assert harness.harness_version()
    assert "unknown task 'hellaswg'. Did you mean" in loralab(*EVAL[:3], "--tasks", "hellaswg").err
