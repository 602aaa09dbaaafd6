"""From a file to examples: nothing is lost without being counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from loralab.data.dataset import Reading, load_dataset
from loralab.data.sources import read_rows
from loralab.errors import ConfigError, DataError


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows: list[dict[str, object]] = [
        {"prompt": "once", "completion": "upon", "id": 1},
        {"prompt": "once", "completion": " "},
        {"prompt": "once", "completion": "a time " * 40},
        {"prompt": "the user", "completion": "asked"},
    ]
    return write_rows(tmp_path / "train.jsonl", rows)


def test_every_row_is_an_example_or_rejected_with_a_reason(
    chatml: PreTrainedTokenizerFast, pairs: Path
) -> None:
    data = load_dataset(pairs, chatml, Reading(cutoff_length=32, template="plain"))
    assert [example.source for example in data.examples] == ["train.jsonl:1", "train.jsonl:4"]
    assert [entry.source for entry in data.rejected] == ["train.jsonl:2", "train.jsonl:3"]
    blank, long = data.rejected
    assert "nothing to train on" in blank.reason
    assert blank.row == {"prompt": "once", "completion": " "}
    assert long.reason.startswith("longer than cutoff_length 32: ")
    assert (data.format, data.template) == ("completion", "plain")
    assert data.tokens == sum(len(example.ids) for example in data.examples)
    assert data.trained_tokens == sum(example.trained for example in data.examples)
    assert data.unused_columns == ("id",)


def test_the_tokenizers_own_template_is_taken_unless_another_is_named(
    chatml: PreTrainedTokenizerFast, pairs: Path
) -> None:
    assert load_dataset(pairs, chatml).template == "tokenizer"
    assert load_dataset(pairs, chatml, Reading(template="vicuna")).template == "vicuna"


def test_the_fingerprint_follows_the_bytes_and_the_settings(
    chatml: PreTrainedTokenizerFast, pairs: Path
) -> None:
    first = load_dataset(pairs, chatml).fingerprint
    again = load_dataset(pairs, chatml, Reading(format="completion", template="tokenizer")).fingerprint
    shorter = load_dataset(pairs, chatml, Reading(cutoff_length=64)).fingerprint
    other = load_dataset(pairs, chatml, Reading(template="plain")).fingerprint
    pairs.write_bytes(pairs.read_bytes() + b"\n")
    assert first == again
    assert len({first, shorter, other, load_dataset(pairs, chatml).fingerprint}) == 4


def test_a_document_is_cut_and_a_blank_one_rejected(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "tales.jsonl", [{"text": "once upon a time\n" * 20}, {"text": " "}, {"text": "b"}]
    )
    data = load_dataset(path, chatml, Reading(cutoff_length=32, overlap_length=4))
    assert [entry.source for entry in data.rejected] == ["tales.jsonl:2"]
    assert data.examples[-1].source == "tales.jsonl:3"
    assert max(len(example.ids) for example in data.examples) <= 32
    whole = load_dataset(path, chatml, Reading(cutoff_length=10_000))
    assert len(whole.examples) == 2
    assert data.trained_tokens == whole.trained_tokens
    assert data.template == "none"


def test_a_row_that_does_not_fit_the_first_is_an_error(
    chatml: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = [{"prompt": "a", "completion": "b"}, {"promt": "a", "completion": "b"}]
    path = write_rows(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match=r"^train\.jsonl:2: row has columns 'promt', 'completion'; format"):
        load_dataset(path, chatml)


def test_nothing_left_is_an_error_with_the_counts(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    pairs = write_rows(
        tmp_path / "a.jsonl",
        [{"prompt": "a", "completion": ""}, *({"prompt": "a", "completion": "b" * 20} for _ in range(2))],
    )
    with pytest.raises(DataError) as caught:
        load_dataset(pairs, chatml, Reading(cutoff_length=8, template="plain"))
    assert str(caught.value) == (
        "a.jsonl: none of 3 rows can be trained on: 1 with nothing to train on, as the answer or text is "
        "blank; 2 longer than cutoff_length 8. The shortest has 23 tokens; raise cutoff_length."
    )
    texts = write_rows(tmp_path / "b.jsonl", [{"text": ""}])
    with pytest.raises(DataError, match=r"none of 1 rows .* text is blank\.$"):
        load_dataset(texts, chatml)


def test_a_setting_without_effect_is_an_error(
    chatml: PreTrainedTokenizerFast, pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="overlap_length 4 has no effect"):
        load_dataset(pairs, chatml, Reading(overlap_length=4))
    (tmp_path / "tale.txt").write_text("once upon a time")
    with pytest.raises(ConfigError, match="template 'vicuna' has no effect"):
        load_dataset(tmp_path / "tale.txt", chatml, Reading(template="vicuna"))
    with pytest.raises(ConfigError, match="overlap_length 512 must be smaller than cutoff_length 512"):
        load_dataset(pairs, chatml, Reading(overlap_length=512))


@pytest.mark.parametrize(
    ("setting", "documents"),
    [
        ({"hard_cut_string": "x"}, True),
        ({"newline_favor_length": 3}, True),
        ({"min_chars": 3}, True),
        ({"add_bos": False}, True),
        ({"add_eos": False}, True),
        ({"train_on": "last-answer"}, False),
        ({"too_long": "cut"}, False),
    ],
)
def test_a_setting_of_the_other_kind_of_data_is_an_error(
    chatml: PreTrainedTokenizerFast, pairs: Path, tmp_path: Path, setting: dict[str, Any], documents: bool
) -> None:
    tale = tmp_path / "tale.txt"
    tale.write_text("once upon a time")
    (name,) = setting
    with pytest.raises(ConfigError, match=rf"^{name} .* has no effect: .*; leave it out\.$"):
        load_dataset(pairs if documents else tale, chatml, Reading(**setting))


def test_a_long_row_can_be_cut(chatml: PreTrainedTokenizerFast, pairs: Path) -> None:
    dropped = load_dataset(pairs, chatml, Reading(cutoff_length=32, template="plain"))
    data = load_dataset(pairs, chatml, Reading(cutoff_length=32, template="plain", too_long="cut"))
    whole = load_dataset(pairs, chatml, Reading(template="plain"))
    assert (dropped.cut, data.cut, data.counts[0].cut) == (0, 1, 1)
    assert [e.source for e in data.examples] == ["train.jsonl:1", "train.jsonl:3", "train.jsonl:4"]
    assert data.examples[1].ids == whole.examples[1].ids[:32]
    assert data.examples[1].weights == whole.examples[1].weights[:32]
    # A prompt that fills the row leaves nothing to train on.
    write_rows(pairs, [{"prompt": "once " * 40, "completion": "a"}, {"prompt": "a", "completion": "b"}])
    data = load_dataset(pairs, chatml, Reading(cutoff_length=32, template="plain", too_long="cut"))
    assert [entry.reason for entry in data.rejected] == ["with nothing to train on within cutoff_length 32"]
    assert data.cut == 0


def test_columns_are_renamed_before_the_format_is_found(
    chatml: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = [
        {"frage": "once", "antwort": "upon", "completion": "x"},
        {"frage": "a", "antwort": "b", "completion": "y"},
    ]
    path = write_rows(tmp_path / "a.jsonl", rows)
    columns = "prompt=frage, completion = antwort, antwort=completion"
    data = load_dataset(path, chatml, Reading(columns=columns, template="plain"))
    plain = [{"prompt": row["frage"], "completion": row["antwort"]} for row in rows]
    expected = load_dataset(write_rows(tmp_path / "b.jsonl", plain), chatml, Reading(template="plain"))
    assert list(data.examples) == list(expected.examples)
    assert (data.format, data.unused_columns) == ("completion", ("antwort",))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("prompt=frge, completion=antwort", r"'prompt=frge': a\.jsonl:1 has no column 'frge'; found are "),
        ("prompt=frage", "'frage'.*'prompt=frage'|row has columns"),
        ("prompt", "'prompt' is no NAME=COLUMN"),
        ("prompt=", "'prompt=' is no NAME=COLUMN"),
        ("prompt=frage, prompt=antwort", "'prompt' is named twice"),
        ("prompt=frage, completion=frage", "'frage' is named twice"),
        ("prompt=frage, completion=antwort, system=sytem", r"Did you mean 'system'"),
    ],
)
def test_wrong_columns_are_an_error(
    chatml: PreTrainedTokenizerFast, tmp_path: Path, columns: str, message: str
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"frage": "once", "antwort": "upon", "system": "x"}])
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        load_dataset(path, chatml, Reading(columns=columns))
    assert "\n" not in str(caught.value)


def test_a_name_that_is_taken_is_an_error(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "a", "question": "b", "completion": "c"}])
    with pytest.raises(DataError, match=r"^a\.jsonl:1: .*the row has a column 'prompt' already"):
        load_dataset(path, chatml, Reading(columns="prompt=question"))


def test_short_passages_are_rejected_each_with_its_line(
    chatml: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "tale.txt"
    path.write_text("once upon a time\n***\n12\n***\n \n***\nthe user asked\n")
    data = load_dataset(path, chatml, Reading(hard_cut_string="***", min_chars=5))
    assert [example.source for example in data.examples] == ["tale.txt:1, line 1", "tale.txt:1, line 7"]
    (short,) = data.rejected
    assert (short.source, short.reason) == ("tale.txt:1, line 3", "shorter than min_chars 5: 2 characters")
    (counts,) = data.counts
    assert (counts.rows, counts.passages, counts.used, counts.rejected) == (1, 3, 2, 1)
    blank = write_rows(tmp_path / "a.jsonl", [{"text": " "}, {"text": "once"}])
    data = load_dataset(blank, chatml, Reading(hard_cut_string="***"))
    assert [entry.source for entry in data.rejected] == ["a.jsonl:1"]


def test_settings_of_raw_text_reach_the_examples(
    chatml: PreTrainedTokenizerFast, stories: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "tale.txt"
    path.write_text("once upon a time\n" * 20)
    ends = load_dataset(path, stories), load_dataset(path, stories, Reading(add_bos=False, add_eos=False))
    assert ends[0].examples[0].ids[0] == stories.bos_token_id
    assert ends[0].examples[-1].ids[-1] == stories.eos_token_id
    assert stories.bos_token_id not in ends[1].examples[0].ids
    assert ends[1].examples[-1].ids[-1] != stories.eos_token_id
    exact = load_dataset(path, chatml, Reading(cutoff_length=40, newline_favor_length=0))
    assert {len(example.ids) for example in exact.examples[:-1]} == {40}
    favored = load_dataset(path, chatml, Reading(cutoff_length=40, newline_favor_length=20))
    assert chatml.decode(favored.examples[0].ids).endswith("\n")


def test_the_last_answer_alone_can_be_trained(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    turns = [{"role": role, "content": "a time"} for role in ("user", "assistant") * 2]
    path = write_rows(tmp_path / "a.jsonl", [{"messages": turns}])
    both, last = (load_dataset(path, chatml, Reading(train_on=on)) for on in ("answers", "last-answer"))
    assert both.examples[0].ids == last.examples[0].ids
    assert both.trained_tokens == 2 * last.trained_tokens


def test_of_many_rejected_rows_the_reasons_are_kept(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"a {n}", "completion": ""} for n in range(1200)]
    path = write_rows(tmp_path / "a.jsonl", [*rows, {"prompt": "a", "completion": "b"}])
    data = load_dataset(path, chatml)
    assert len(data.rejected) == data.counts[0].rejected == 1200
    assert data.rejected[999].row == rows[999]
    assert data.rejected[1000].row is None
    assert data.rejected[1000].source == "a.jsonl:1001"


@pytest.mark.parametrize(
    ("name", "format", "template"),
    [
        ("e2e/train_2k.jsonl", "completion", "plain"),
        ("instruct/alpaca_en_demo.json", "alpaca", "alpaca"),
        ("instruct/alpaca_en_demo_messages.jsonl", "messages", "chatml"),
        ("instruct/sharegpt_dummy_conversation.json", "sharegpt", "vicuna"),
        ("instruct/glaive_toolcall_en_demo.json", "sharegpt", "vicuna"),
    ],
)
def test_real_conversations(
    stories: PreTrainedTokenizerFast, assets: Path, name: str, format: str, template: str
) -> None:
    path = assets / "data" / name
    data = load_dataset(path, stories, Reading(cutoff_length=768))
    assert (data.format, data.template) == (format, template)
    assert len(data.examples) + len(data.rejected) == len(list(read_rows(path)))
    assert len(data.examples) > 100
    for example in data.examples:
        assert example.ids.count(stories.bos_token_id) == 1
        assert example.ids[-1] == stories.eos_token_id
        assert 0 < example.trained < len(example.ids) <= 768


def test_a_real_document(gpt2: PreTrainedTokenizerFast, assets: Path) -> None:
    path = assets / "data" / "text" / "tinyshakespeare.txt"
    data = load_dataset(path, gpt2, Reading(cutoff_length=256, overlap_length=32))
    ids = list(data.examples[0].ids)
    for block in data.examples[1:]:
        assert ids[-32:] == list(block.ids[:32])
        ids += block.ids[32:]
    assert data.trained_tokens == len(ids) - 1
    assert gpt2.decode(ids) == path.read_text(encoding="utf8") + "<|endoftext|>"


def test_rows_are_counted_once_however_many_passages_they_have(
    chatml: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = [{"text": f"1***once upon a time {n}***2***the user"} for n in range(7)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    data = load_dataset(path, chatml, Reading(hard_cut_string="***", min_chars=3))
    (counts,) = data.counts
    assert (counts.rows, counts.drawn, counts.passages) == (7, 7, 28)
    assert (counts.used, counts.rejected, data.duplicates) == (14, 14, 18)
