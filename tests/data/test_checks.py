"""Bad data is named, each fault with its code and its rows; good data is not spoken of."""

import copy
import importlib
import json
import pkgutil
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from loralab.data import checks, golden
from loralab.data.checks import check_data
from loralab.data.dataset import Dataset, Reading, load_dataset
from loralab.data.examples import Examples
from loralab.data.findings import Code, Finding, sort
from loralab.data.lengths import fill, histogram
from loralab.data.sampling import first_conversations
from loralab.data.templates import choose_template
from loralab.training import checks as setting_checks
from loralab.training.config import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "checks.md"
WORDS = ["red", "blue", "dog", "cat", "tree", "house", "river", "sings", "runs", "eats"]

Rows = Sequence[dict[str, Any]]
Check = Callable[..., list[Finding]]


def say(number: int, words: int) -> str:
    draw = random.Random(number)
    return " ".join(draw.choice(WORDS) for _ in range(words))


def good(count: int = 40) -> list[dict[str, Any]]:
    """Rows without a fault."""
    return [{"prompt": f"{say(n, 6)}?", "completion": f"{say(n + 1000, 5)}."} for n in range(count)]


def answered(answer: str, count: int = 1) -> list[dict[str, Any]]:
    return [{"prompt": say(n + 5000, 6), "completion": answer} for n in range(count)]


@pytest.fixture
def load(tmp_path: Path, chatml: PreTrainedTokenizerFast) -> Callable[..., Dataset]:
    """Rows through a file of their own into a data set."""

    def read(rows: Rows, name: str = "rows", tokenizer: Any = chatml, **settings: Any) -> Dataset:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
        return load_dataset(path, tokenizer, Reading(**settings))

    return read


@pytest.fixture
def check(load: Callable[..., Dataset], chatml: PreTrainedTokenizerFast) -> Check:
    """Return what is found in rows."""

    def find(rows: Rows, tokenizer: Any = chatml, **settings: Any) -> list[Finding]:
        return check_data(load(rows, tokenizer=tokenizer, **settings), tokenizer)

    return find


def codes(findings: Sequence[Finding]) -> list[str]:
    return [finding.code for finding in findings]


def test_good_rows_are_not_spoken_of(check: Check) -> None:
    assert check(good()) == []
    assert check([{"text": say(n, 30)} for n in range(40)]) == []


FAULTS: dict[str, tuple[Rows, dict[str, Any], int, str]] = {
    "D101": ([*good(), *answered(" ", 3)], {}, 3, "rows.jsonl:41"),
    "D102": ([*good(), *answered(say(1, 300), 2)], {}, 2, "rows.jsonl:41"),
    "D103": ([*good(), *answered(say(1, 300), 2)], {"too_long": "cut"}, 2, ""),
    "D104": ([{"text": say(n, 30)} for n in range(40)] + [{"text": "a b"}], {"min_chars": 9}, 1, ""),
    "D105": ([*good(3), *answered("", 4)], {}, 4, ""),
    "D106": ([{**row, "note": "x"} for row in good()], {}, 0, ""),
    "D111": ([*good(), *good(5)], {}, 5, "rows.jsonl:41"),
    "D121": ([{"text": say(n, 30)} for n in range(40)], {"add_eos": False}, 0, ""),
    "D122": ([*good(), *answered("one<|im_end|> two")], {}, 1, "rows.jsonl:41"),
    "D141": ([*good(), *answered("one\r\ntwo")], {}, 1, "rows.jsonl:41"),
    "D142": (
        [*good(), *answered("caf\u00c3\u00a9 au lait"), *answered("caf\ufffd noir")],
        {},
        2,
        "rows.jsonl:41",
    ),
    "D151": ([*good(), *answered("nan"), *answered("..."), *answered("N/A.")], {}, 3, "rows.jsonl:41"),
    "D152": ([*good(), *answered("yes", 41)], {}, 41, "rows.jsonl:41"),
    "D153": ([{**row, "prompt": "go"} for row in good()], {}, 40, "rows.jsonl:1"),
    "D154": ([{"prompt": say(n, 90), "completion": WORDS[n % 10]} for n in range(40)], {}, 0, ""),
    "D161": (good(19), {}, 19, ""),
}


@pytest.mark.parametrize("code", FAULTS)
def test_a_fault_is_named_with_its_rows(check: Check, code: str) -> None:
    rows, settings, count, first = FAULTS[code]
    found = {finding.code: finding for finding in check(rows, **settings)}
    assert code in found
    finding = found[code]
    assert finding.count == count
    assert not first or finding.where[0] == first
    assert len(finding.where) <= 3
    assert "\n" not in finding.text + finding.fix
    assert (finding.severity == "error") is (code == "D105")


@pytest.mark.parametrize(
    ("code", "rows", "settings"),
    [
        ("D105", [*good(4), *answered("", 4)], {}),
        ("D111", [*good(), {**good(1)[0], "completion": "other"}], {}),
        ("D121", [{"text": say(n, 30)} for n in range(40)], {}),
        ("D142", [*good(), *answered("café, naïve, 'É', 10 €, Ångström")], {}),
        ("D151", [*good(), *answered("42"), *answered("no"), *answered("👍"), *answered("nanny")], {}),
        ("D152", [*good(), *answered("yes", 40)], {}),
        ("D161", good(20), {}),
    ],
)
def test_what_is_near_a_fault_is_none(check: Check, code: str, rows: Rows, settings: dict[str, Any]) -> None:
    assert code not in codes(check(rows, **settings))


def test_why_rows_are_lost_stands_in_the_refusal(check: Check) -> None:
    found = check([*good(2), *answered("", 2), *answered(say(1, 300), 2)])
    assert found[0].severity == "error"
    assert re.search(r"2 with nothing to train on.*2 longer than", found[0].text)


def test_a_weight_makes_no_copies(tmp_path: Path, chatml: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in good()), encoding="utf8")
    data = load_dataset(f"{path}*2", chatml)
    assert len(data.examples) == 80
    assert codes(check_data(data, chatml)) == []


def test_validation_rows_that_are_not_new(
    load: Callable[..., Dataset], chatml: PreTrainedTokenizerFast
) -> None:
    data = load(good())
    same = load([*good(41)[38:], *good(60)[41:], {**good(1)[0], "completion": "other"}], "eval")
    found = {finding.code: finding for finding in check_data(data, chatml, same)}
    assert found.keys() == {"D112", "D113"}
    assert found["D112"].where == ("eval.jsonl:1", "eval.jsonl:2")
    assert found["D113"].where == ("eval.jsonl:23",)
    assert codes(check_data(data, chatml, load(good(60)[40:], "new"))) == []
    assert codes(check_data(data, chatml, load(good(50)[40:], "few"))) == ["D162"]
    assert codes(check_data(data, chatml, load([*good(60)[40:], *answered("")], "blank"))) == ["D101"]


def test_two_openings_are_found_where_a_text_has_one_of_its_own(
    check: Check, stories: PreTrainedTokenizerFast
) -> None:
    once = [{"text": f"<s> {say(n, 30)}"} for n in range(40)]
    assert "D134" not in codes(check(once, stories))
    assert "D134" in codes(check([{"text": f"<s>{row['text']}"} for row in once], stories))


def test_a_template_that_rewrites_earlier_turns_is_named(
    load: Callable[..., Dataset], chatml: PreTrainedTokenizerFast
) -> None:
    data = load(good())
    other = copy.deepcopy(chatml)
    other.chat_template = (
        "{% for m in messages %}{% if loop.last or m.role == 'user' %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert codes(check_data(data, other)) == ["D131"]


def test_a_tokenizer_that_opens_what_its_template_does_not_is_named(
    load: Callable[..., Dataset], stories: PreTrainedTokenizerFast
) -> None:
    opened = copy.deepcopy(stories)
    opened.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert choose_template(opened, "plain").name == "tokenizer"
    assert "D133" in codes(check_data(load(good(), tokenizer=opened), opened))
    opened.chat_template = "{{ bos_token }}" + opened.chat_template
    assert "D133" not in codes(check_data(load(good(), tokenizer=opened), opened))


def test_marks_that_are_no_tokens_are_named(check: Check, stories: PreTrainedTokenizerFast) -> None:
    assert "D135" in codes(check(good(), stories, template="chatml"))
    assert "D135" not in codes(check(good(), stories, template="plain"))


def test_unknown_tokens_are_counted(load: Callable[..., Dataset]) -> None:
    words = {word: number for number, word in enumerate(["<unk>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    known = [{"text": say(n, 30)} for n in range(40)]
    assert codes(check_data(load(known, tokenizer=fast), fast)) == []
    strange = [{"text": f"{row['text']} zzz yyy"} for row in known]
    (finding,) = check_data(load(strange, tokenizer=fast), fast)
    assert (finding.code, finding.count) == ("D143", 40)


@pytest.mark.parametrize("train_on", ["answers", "last-answer"])
def test_examples_are_held_to_what_serving_writes(
    load: Callable[..., Dataset], chatml: PreTrainedTokenizerFast, tmp_path: Path, train_on: str
) -> None:
    turns = [("user", "red?"), ("assistant", "blue."), ("user", "cat?"), ("assistant", "dog.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    rows = [{"messages": [*messages, {"role": "user", "content": say(n, 3)}, messages[1]]} for n in range(30)]
    data = load(rows, train_on=train_on)
    known = first_conversations(str(tmp_path / "rows.jsonl"), Reading(), data.format)
    assert len(known) == 30
    assert "D132" not in codes(check_data(data, chatml, conversations=known))
    # The id that a served prompt would not have.
    ids = data.examples.arrays["ids"].copy()
    ids[data.examples.arrays["ends"][3] + 1] += 1
    spoiled = Examples({**data.examples.arrays, "ids": ids})
    changed = Dataset(spoiled, (), data.format, data.template, data.tokens, data.trained_tokens, "")
    found = {finding.code: finding for finding in check_data(changed, chatml, conversations=known)}
    assert found["D132"].severity == "error"
    assert found["D132"].where == ("rows.jsonl:4",)


def test_conversations_are_read_under_the_names_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "reply": "b"}\n' * 70, encoding="utf8")
    reading = Reading(columns="prompt=question, completion=reply")
    found = first_conversations(str(path), reading, "completion")
    assert len(found) == 64
    assert [message.content for message in found[0][1].messages] == ["a", "b"]


def test_many_rows_are_checked_at_once(chatml: PreTrainedTokenizerFast) -> None:
    """No row is made into an `Example`: 50,000 of them would take seconds."""
    rows, length = 50_000, 60
    draw = np.random.default_rng(0)
    ids = draw.integers(3, 300, rows * length).astype("int32")
    trained = np.tile(np.repeat([0, 1], [length // 2, length // 2]), rows).astype("uint8")
    ends = np.arange(0, rows * length + 1, length)
    sources = np.frombuffer(b"r" * rows, "uint8")
    arrays = {"ids": ids, "trained": trained, "ends": ends, "sources": sources}
    examples = Examples({**arrays, "source_ends": np.arange(rows + 1)})
    data = Dataset(examples, (), "completion", "tokenizer", ids.size, int(trained.sum()), "")
    made: list[object] = []
    original = Examples.__getitem__
    began = time.process_time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Examples, "__getitem__", lambda self, at: made.append(at) or original(self, at))
        assert "D121" in codes(check_data(data, chatml, data))
    assert not made
    assert time.process_time() - began < 30


def test_the_worst_comes_first() -> None:
    made = [
        Code(code, kind, "", "").found("") for code, kind in (("B", "note"), ("C", "error"), ("A", "warning"))
    ]
    assert codes(sort(made)) == ["C", "A", "B"]


def test_a_histogram_counts_every_example_in_round_bars() -> None:
    for lengths in ([1], [7, 7, 7], list(range(1, 500)), [3, 9000], [512] * 5 + [1]):
        bars = histogram(lengths)
        assert 1 <= len(bars) <= 12
        assert sum(count for _, _, count in bars) == len(lengths)
        assert bars[0][2]
        assert bars[-1][2]
        for low, high, count in bars:
            assert count == sum(low <= length <= high for length in lengths)
            assert (high % (high - low + 1)) == 0
    assert histogram([]) == []


def test_packing_fills_rows_and_equal_lengths_are_full_alone() -> None:
    assert fill([10] * 20, 8).rows == fill([10] * 20, 8).packed == 1
    uneven = fill([1, 2, 3, 100] * 10, 8)
    assert uneven.rows < 0.5 < uneven.packed <= 1


DOORS = [(checks, "D"), (setting_checks, "S")]


@pytest.mark.parametrize(("door", "letter"), DOORS)
def test_codes_are_of_one_file_each(door: Any, letter: str) -> None:
    files = [info.name for info in pkgutil.iter_modules(door.__path__) if not info.name.startswith("_")]
    assert door.REGISTRY.names == sorted(files)
    known = [code.code for code in door.codes()]
    assert len(set(known)) == len(known)
    for name in files:
        module = importlib.import_module(f"{door.__name__}.{name}")
        assert module.__doc__
        assert all(re.fullmatch(rf"{letter}\d{{3}}", code.code) for code in module.CODES)


def test_the_page_has_every_code_as_it_is() -> None:
    rows = re.findall(
        r"^\| ([A-Z]\d{3}) \| (\w+) \| (.+?) \| (.+?) \|$", PAGE.read_text(encoding="utf8"), re.M
    )
    known = [*checks.codes(), *setting_checks.codes(), *golden.CODES]
    assert rows == [(code.code, code.severity, code.meaning, code.fix) for code in known]


def test_a_fix_names_flags_that_there_are() -> None:
    flags = {f"--{name.replace('_', '-')}" for name in RunConfig.model_fields}
    for code in [*checks.codes(), *setting_checks.codes()]:
        assert set(re.findall(r"--[a-z][a-z-]+", code.fix)) <= flags, code.fix
