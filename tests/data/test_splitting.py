"""Which rows are held out follows from what they say, and from nothing else."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from loralab.data.dataset import Reading, load_dataset, load_split
from loralab.data.splitting import content_of, fraction_of, held_out_blocks, number_of
from loralab.data.types import Chat, Example, Message, Text, ToolCall
from loralab.errors import ConfigError, DataError


def row(number: int) -> dict[str, object]:
    return {"id": number, "prompt": f"once {number}", "completion": f"upon {number}"}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf8")
    return path


def prompts(examples: list[Example], tokenizer: PreTrainedTokenizerFast) -> set[str]:
    return {tokenizer.decode(example.ids) for example in examples}


def test_a_row_stays_on_its_side(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    reading = Reading(eval_split=0.2)
    first = load_split(write(tmp_path / "a.jsonl", [row(n) for n in range(200)]), chatml, reading)
    more = [row(n) for n in (*range(250, 199, -1), *range(199, -1, -1))]
    second = load_split(write(tmp_path / "b.jsonl", more), chatml, reading)
    assert 20 <= len(first[1].examples) <= 60
    assert len(first[0].examples) + len(first[1].examples) == 200
    for before, after in zip(first, second, strict=True):
        assert prompts(list(before.examples), chatml) < prompts(list(after.examples), chatml)


def test_rows_that_say_the_same_are_on_one_side(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [row(n) | {"id": copy} for copy in range(3) for n in range(50)]
    train, held_out = load_split(write(tmp_path / "a.jsonl", rows), chatml, Reading(eval_split=0.3))
    sides = [prompts(list(side.examples), chatml) for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 50
    assert train.duplicates + held_out.duplicates == 100
    assert train.fingerprint != held_out.fingerprint


def test_a_larger_share_holds_out_the_same_and_more(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(n) for n in range(200)])
    small, large = (load_split(path, chatml, Reading(eval_split=share))[1] for share in (0.1, 0.3))
    assert {e.source for e in small.examples} < {e.source for e in large.examples}


def test_what_is_rejected_is_counted_on_its_side(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [row(n) | {"completion": " " if n % 2 else "a"} for n in range(60)]
    sides = load_split(write(tmp_path / "a.jsonl", rows), chatml, Reading(eval_split=0.4))
    assert sum(len(side.rejected) for side in sides) == 30
    for side in sides:
        (counts,) = side.counts
        assert (counts.rows, counts.drawn) == (60, counts.used + counts.rejected)


def test_a_text_is_divided_by_its_passages(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "tales.txt"
    path.write_text("\n\n\n".join(f"once upon a time {n}" for n in range(60)))
    reading = Reading(hard_cut_string=r"\n\n\n", eval_split=0.2)
    train, held_out = load_split(path, chatml, reading)
    sides = [prompts(list(side.examples), chatml) for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 60
    assert held_out.counts[0].passages == len(held_out.examples) > 4
    assert train.examples[0].source.startswith("tales.txt:1, line ")


def test_a_single_passage_is_divided_at_its_end(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "tale.txt"
    path.write_text("once upon a time the user asked the assistant\n" * 60)
    reading = Reading(cutoff_length=64, overlap_length=8)
    whole = load_dataset(path, chatml, reading)
    train, held_out = load_split(path, chatml, Reading(cutoff_length=64, overlap_length=8, eval_split=0.2))
    assert [*train.examples, *held_out.examples] == list(whole.examples)
    assert len(held_out.examples) == round(len(whole.examples) * 0.2)
    assert train.trained_tokens + held_out.trained_tokens == whole.trained_tokens
    path.write_text("once upon a time")
    with pytest.raises(DataError, match=r"^tale\.txt:1: eval_split has nothing to divide.*hard_cut_string"):
        load_split(path, chatml, Reading(eval_split=0.2))


@pytest.mark.parametrize(("blocks", "share", "expected"), [(2, 0.01, 1), (2, 0.5, 1), (10, 0.25, 2)])
def test_either_side_has_a_block(blocks: int, share: float, expected: int) -> None:
    assert held_out_blocks(blocks, share, "a.txt:1") == expected


def test_an_empty_side_is_an_error_that_names_a_share(
    chatml: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [row(n) for n in range(8)])
    with pytest.raises(DataError, match="holds out no row") as caught:
        load_split(path, chatml, Reading(eval_split=1e-6))
    share = float(str(caught.value).split("raise it to ")[1].split(",")[0])
    assert len(load_split(path, chatml, Reading(eval_split=share))[1].examples) == 1
    # Of one row, one side has none.
    path = write(tmp_path / "b.jsonl", [row(1)])
    with pytest.raises(DataError, match=r"^b\.jsonl: eval_split"):
        load_split(path, chatml, Reading(eval_split=0.5))


def test_the_two_ways_to_load_are_told_apart(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(1)])
    with pytest.raises(ConfigError, match="call load_split"):
        load_dataset(path, chatml, Reading(eval_split=0.5))
    with pytest.raises(ConfigError, match="call load_dataset"):
        load_split(path, chatml, Reading())
    for share in (0.0, 0.6, -1.0):
        with pytest.raises(ConfigError, match=r"expected a share above 0, up to 0\.5"):
            load_split(path, chatml, Reading(eval_split=share))


def test_the_hash_is_of_the_content_and_even() -> None:
    fractions = [fraction_of(f"row {n}", "split") for n in range(2000)]
    assert 0.17 < sum(fraction < 0.2 for fraction in fractions) / 2000 < 0.23
    assert 0 <= min(fractions) < max(fractions) < 1
    assert fraction_of("a", "split") == fraction_of("a", "split") != fraction_of("a", "sample")
    # A later release holds out the same rows.
    assert number_of("once upon a time", "split") == 7192476477492874779


def test_what_a_row_says() -> None:
    chat = Chat((Message("user", "a"), Message("assistant", "b")))
    assert content_of(chat) != content_of(Chat((Message("user", "a"), Message("assistant", "c"))))
    assert content_of(chat) != content_of(Chat((Message("system", "a"), Message("assistant", "b"))))
    called = Message("assistant", "b", tool_calls=(ToolCall("f", {"x": 1}),))
    assert content_of(chat) != content_of(Chat((Message("user", "a"), called)))
    assert content_of(chat) != content_of(Chat(chat.messages, ({"type": "function"},)))
    assert content_of(Text("a")) == "a"
    assert number_of("\ud800", "split") != number_of("\ud801", "split")
