"""From a file to examples: nothing is lost without being counted."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from loralab.data.dataset import load_dataset
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
    data = load_dataset(pairs, chatml, cutoff_length=32, template="plain")
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
    assert load_dataset(pairs, chatml, template="vicuna").template == "vicuna"


def test_the_fingerprint_follows_the_bytes_and_the_settings(
    chatml: PreTrainedTokenizerFast, pairs: Path
) -> None:
    first = load_dataset(pairs, chatml).fingerprint
    again = load_dataset(pairs, chatml, format="completion", template="tokenizer").fingerprint
    shorter = load_dataset(pairs, chatml, cutoff_length=64).fingerprint
    other = load_dataset(pairs, chatml, template="plain").fingerprint
    pairs.write_bytes(pairs.read_bytes() + b"\n")
    assert first == again
    assert len({first, shorter, other, load_dataset(pairs, chatml).fingerprint}) == 4


def test_a_document_is_cut_and_a_blank_one_rejected(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "tales.jsonl", [{"text": "once upon a time\n" * 20}, {"text": " "}, {"text": "b"}]
    )
    data = load_dataset(path, chatml, cutoff_length=32, overlap_length=4)
    assert [entry.source for entry in data.rejected] == ["tales.jsonl:2"]
    assert data.examples[-1].source == "tales.jsonl:3"
    assert max(len(example.ids) for example in data.examples) <= 32
    whole = load_dataset(path, chatml, cutoff_length=10_000)
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
        load_dataset(pairs, chatml, cutoff_length=8, template="plain")
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
        load_dataset(pairs, chatml, overlap_length=4)
    (tmp_path / "tale.txt").write_text("once upon a time")
    with pytest.raises(ConfigError, match="template 'vicuna' has no effect"):
        load_dataset(tmp_path / "tale.txt", chatml, template="vicuna")
    with pytest.raises(ConfigError, match="overlap_length 512 must be smaller than cutoff_length 512"):
        load_dataset(pairs, chatml, overlap_length=512)


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
    data = load_dataset(path, stories, cutoff_length=768)
    assert (data.format, data.template) == (format, template)
    assert len(data.examples) + len(data.rejected) == len(list(read_rows(path)))
    assert len(data.examples) > 100
    for example in data.examples:
        assert example.ids.count(stories.bos_token_id) == 1
        assert example.ids[-1] == stories.eos_token_id
        assert 0 < example.trained < len(example.ids) <= 768


def test_a_real_document(gpt2: PreTrainedTokenizerFast, assets: Path) -> None:
    path = assets / "data" / "text" / "tinyshakespeare.txt"
    data = load_dataset(path, gpt2, cutoff_length=256, overlap_length=32)
    ids = list(data.examples[0].ids)
    for block in data.examples[1:]:
        assert ids[-32:] == list(block.ids[:32])
        ids += block.ids[32:]
    assert data.trained_tokens == len(ids) - 1
    assert gpt2.decode(ids) == path.read_text(encoding="utf8") + "<|endoftext|>"
