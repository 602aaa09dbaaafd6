"""What is taken from the cache is what would be made again; nothing about the cache can stop a run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from loralab.data import dataset, examples, mixture
from loralab.data.cache import Entry, Filled, code_digest, entry_path, read_entry, write_entry
from loralab.data.dataset import Dataset, Reading, load_dataset, load_split
from loralab.data.examples import Builder
from loralab.data.making import Making
from loralab.errors import ConfigError, DataError

LOAD = """
import hashlib, sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from loralab.data.dataset import load_dataset

tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
data = load_dataset(Path(sys.argv[1]), tokenizer)
print(data.cached, hash(tuple(data.examples)))
"""


PEAK = """
import re, sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from loralab.data.dataset import load_dataset

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[2])
Path("/proc/self/clear_refs").write_text("5")  # from here on
before = peak()
data = load_dataset(Path(sys.argv[1]), tokenizer)
print(len(data.examples), peak() - before)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LORALAB_CACHE", str(folder))
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two rows to train on and two that are rejected, with values of every kind beside them."""
    path = tmp_path / "train.jsonl"
    kinds = {"id": 2**70, "share": 0.1, "none": None, "list": [True, {"half": "\ud800"}], "text": "é猫"}
    lines = [
        {"prompt": "once", "completion": "upon"},
        {"prompt": "once", "completion": " ", **kinds},
        {"prompt": "once", "completion": "a time " * 90, **kinds},
        {"prompt": "the user", "completion": "asked\n\nthe answer 猫"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf8")
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file of which examples were made, one entry each time."""
    calls: list[Path] = []
    make = dataset._make

    def counted(making: Making, builder: Builder) -> dict[str, Any]:
        calls.extend(source.path for source in making.sources)
        return make(making, builder)

    monkeypatch.setattr(dataset, "_make", counted)
    return calls


def entries(cache: Path) -> list[Path]:
    folder = cache / "examples"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def assert_same(first: Dataset, second: Dataset) -> None:
    for entry in fields(Dataset):
        one, other = getattr(first, entry.name), getattr(second, entry.name)
        if entry.name == "examples":
            one, other = ([(e.source, e.ids, e.weights) for e in part] for part in (one, other))
        if entry.name != "cached":
            assert one == other, entry.name


def test_a_second_run_gets_the_same_without_making_it(
    chatml: PreTrainedTokenizerFast,
    rows: Path,
    cache: Path,
    made: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = (load_dataset(rows, chatml, Reading(cutoff_length=128)) for _ in range(2))
    assert made == [rows]
    assert (first.cached, second.cached) == (True, True)
    assert len(first.rejected) == 2
    monkeypatch.setenv("LORALAB_CACHE_GB", "0")
    plain = load_dataset(rows, chatml, Reading(cutoff_length=128))
    assert made == [rows, rows]
    assert not plain.cached
    assert_same(first, plain)
    assert_same(second, plain)
    assert [entry.row for entry in second.rejected] == [entry.row for entry in plain.rejected]


def test_the_arrays_are_mapped_and_read_only(
    chatml: PreTrainedTokenizerFast, rows: Path, cache: Path
) -> None:
    for data in (load_dataset(rows, chatml), load_dataset(rows, chatml)):
        for name, array in data.examples.arrays.items():
            assert isinstance(array.base, np.memmap), name
            assert not array.flags.writeable


def test_documents_are_kept_as_they_were_cut(
    chatml: PreTrainedTokenizerFast, tmp_path: Path, cache: Path, made: list[Path]
) -> None:
    path = tmp_path / "tale.txt"
    path.write_text("once upon a time\n" * 50)
    first, second = (
        load_dataset(path, chatml, Reading(cutoff_length=32, overlap_length=4)) for _ in range(2)
    )
    assert len(made) == 1
    assert first.examples[1].source.startswith("tale.txt:1, tokens ")
    assert_same(first, second)


def _other_bytes(path: Path, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    path.write_bytes(path.read_bytes() + b"\n")
    return load_dataset(path, tokenizer)


def _other_name(path: Path, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    return load_dataset(path.rename(path.with_name("other.jsonl")), tokenizer)


def _other_token(path: Path, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    other = deepcopy(tokenizer)
    other.add_tokens(["upon"])
    return load_dataset(path, other)


def _other_end(path: Path, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    other = deepcopy(tokenizer)
    other.eos_token = "<|endoftext|>"
    return load_dataset(path, other)


def _other_chat_template(path: Path, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    other = deepcopy(tokenizer)
    other.chat_template = f"{{{{ 'Hi. ' }}}}{tokenizer.chat_template}"
    return load_dataset(path, other)


@pytest.mark.parametrize(
    "load",
    [
        _other_bytes,
        _other_name,
        _other_token,
        _other_end,
        _other_chat_template,
        lambda path, tokenizer: load_dataset(path, tokenizer, Reading(cutoff_length=300)),
        lambda path, tokenizer: load_dataset(path, tokenizer, Reading(format="completion")),
        lambda path, tokenizer: load_dataset(path, tokenizer, Reading(template="plain")),
        lambda path, tokenizer: load_dataset(path, tokenizer, Reading(too_long="cut")),
        lambda path, tokenizer: load_dataset(f"{path}*2", tokenizer),
        lambda path, tokenizer: load_dataset(f"{path}#3", tokenizer),
    ],
)
def test_whatever_changes_makes_another_entry(
    chatml: PreTrainedTokenizerFast,
    rows: Path,
    cache: Path,
    made: list[Path],
    load: Callable[[Path, PreTrainedTokenizerFast], Dataset],
) -> None:
    load_dataset(rows, chatml)
    again = load(rows, chatml)
    assert len(made) == len(entries(cache)) == 2
    assert again.cached


def test_either_side_of_a_split_has_its_entry(
    chatml: PreTrainedTokenizerFast, rows: Path, cache: Path, made: list[Path]
) -> None:
    lines = [json.dumps({"prompt": f"once {n}", "completion": "upon"}) for n in range(40)]
    rows.write_text("\n".join(lines))
    first = load_split(rows, chatml, Reading(eval_split=0.2))
    second = load_split(rows, chatml, Reading(eval_split=0.2))
    assert len(made) == len(entries(cache)) == 2
    for one, other in zip(first, second, strict=True):
        assert other.cached
        assert_same(one, other)
    load_split(rows, chatml, Reading(eval_split=0.3))
    load_dataset(rows, chatml)
    assert len(entries(cache)) == 5


def test_a_file_is_hashed_once(
    chatml: PreTrainedTokenizerFast, rows: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    hash_file = mixture._hash

    def counted(file: Path) -> str:
        hashed.append(file)
        return hash_file(file)

    monkeypatch.setattr(mixture, "_hash", counted)
    for _ in range(2):
        load_dataset(rows, chatml)
    assert hashed == [rows, rows]


def test_a_file_that_is_written_to_meanwhile_is_not_kept(
    chatml: PreTrainedTokenizerFast, rows: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = dataset._make

    def disturbed(making: Making, builder: Builder) -> dict[str, Any]:
        facts = make(making, builder)
        rows.write_bytes(rows.read_bytes() + b"\n")
        return facts

    monkeypatch.setattr(dataset, "_make", disturbed)
    data = load_dataset(rows, chatml)
    assert not data.cached
    assert len(data.examples) == 3
    assert entries(cache) == []


def test_what_exceeds_the_cache_goes_on_in_memory(
    chatml: PreTrainedTokenizerFast, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "_PART", 1000)
    path = tmp_path / "train.jsonl"
    lines = [json.dumps({"prompt": f"once {n}", "completion": "upon a time"}) for n in range(3000)]
    path.write_text("\n".join(lines))
    whole = load_dataset(path, chatml)
    assert whole.cached
    monkeypatch.setenv("LORALAB_CACHE_GB", "1e-4")  # less than half of it
    data = load_dataset(path, chatml, Reading(cutoff_length=511))
    assert not data.cached
    assert [e.ids for e in data.examples] == [e.ids for e in whole.examples]
    assert list((cache / "examples").glob(".*")) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell the peak")
@pytest.mark.parametrize("kind", ["jsonl"])
def test_data_larger_than_memory_may_grow(chatml: PreTrainedTokenizerFast, tmp_path: Path, kind: str) -> None:
    chatml.save_pretrained(tmp_path / "tokenizer")
    answer = "upon a time the user asked the assistant " * 24
    path = tmp_path / f"train.{kind}"
    growth = []
    for count in (2_000, 60_000):
        with path.open("w") as stream:
            stream.write("prompt,completion\n" if kind == "csv" else "")
            for number in range(count):
                row = {"prompt": f"once {number}", "completion": answer}
                stream.write(f"{','.join(row.values())}\n" if kind == "csv" else f"{json.dumps(row)}\n")
        command = [sys.executable, "-c", PEAK, str(path), str(tmp_path / "tokenizer")]
        environment = {**os.environ, "LORALAB_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        examples_made, megabytes = done.stdout.split()
        assert int(examples_made) == count
        growth.append(float(megabytes))
    assert path.stat().st_size > 58e6
    # All rows as Python objects would take hundreds of megabytes, and their tokens as many again.
    assert growth[1] < growth[0] + 40, growth


def test_padding_a_text_changes_no_key(chatml: PreTrainedTokenizerFast, rows: Path, cache: Path) -> None:
    before = entry_path("a", {}, chatml)
    chatml(["once", "once upon a time"], padding=True, truncation=True, max_length=3)
    assert entry_path("a", {}, chatml) == before
    assert entry_path("b", {}, chatml) != before


def test_the_code_is_a_part_of_the_key(tmp_path: Path) -> None:
    assert code_digest(tmp_path) is None
    (tmp_path / "formats").mkdir()
    (tmp_path / "formats" / "text.py").write_text("a = 1\n")
    first = code_digest(tmp_path)
    (tmp_path / "formats" / "text.py").write_text("a = 2\n")
    assert first != code_digest(tmp_path)


def _cut_short(entry: Path) -> None:
    (entry / "ids").write_bytes((entry / "ids").read_bytes()[:-4])


def _lose_a_file(entry: Path) -> None:
    (entry / "ends").unlink()


def _lose_the_facts(entry: Path) -> None:
    (entry / "facts.json").unlink()


def _edit_the_facts(entry: Path) -> None:
    text = (entry / "facts.json").read_text()
    (entry / "facts.json").write_text(text.replace('"tokens": ', '"tokens": 1'))


def _empty_all(entry: Path) -> None:
    for file in entry.iterdir():
        file.write_bytes(b"")


def _zero_all(entry: Path) -> None:
    for file in entry.iterdir():
        file.write_bytes(bytes(file.stat().st_size))


def _be_a_file(entry: Path) -> None:
    for file in entry.iterdir():
        file.unlink()
    entry.rmdir()
    entry.write_text("x")


@pytest.mark.parametrize(
    "damage",
    [_cut_short, _lose_a_file, _lose_the_facts, _edit_the_facts, _empty_all, _zero_all, _be_a_file],
)
def test_a_damaged_entry_is_made_again(
    chatml: PreTrainedTokenizerFast,
    rows: Path,
    cache: Path,
    made: list[Path],
    damage: Callable[[Path], None],
) -> None:
    first = load_dataset(rows, chatml)
    kept = replace(first, examples=tuple(first.examples))
    (entry,) = entries(cache)
    damage(entry)
    second = load_dataset(rows, chatml)
    assert len(made) == 2
    assert_same(second, kept)
    assert second.cached
    assert load_dataset(rows, chatml).cached
    assert len(made) == 2


def test_ends_that_do_not_divide_the_tokens_are_damage(
    chatml: PreTrainedTokenizerFast, rows: Path, cache: Path, made: list[Path]
) -> None:
    load_dataset(rows, chatml)
    (entry,) = entries(cache)
    (entry / "ends").write_bytes(bytes((entry / "ends").stat().st_size))
    assert len(load_dataset(rows, chatml).examples[0].ids) > 0
    assert len(made) == 2


def test_a_cache_that_cannot_be_written_does_not_stop_a_run(
    chatml: PreTrainedTokenizerFast, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("/dev/null/x"), Path("/proc/x")):
        monkeypatch.setenv("LORALAB_CACHE", str(place))
        data = load_dataset(rows, chatml)
        assert not data.cached
        assert len(data.examples) == 3


def test_a_full_disk_does_not_stop_a_run(tmp_path: Path, rows: Path, chatml: PreTrainedTokenizerFast) -> None:
    chatml.save_pretrained(tmp_path / "tokenizer")
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))\n{LOAD}"
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", limited, str(rows), str(tmp_path / "tokenizer")]
    environment = {**os.environ, "LORALAB_CACHE": str(cache)}
    done = subprocess.run(command, input="\n", env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[1] == "False", done.stderr
    assert entries(cache) == []


def test_processes_that_make_the_same_at_once(
    tmp_path: Path, chatml: PreTrainedTokenizerFast, cache: Path
) -> None:
    path = tmp_path / "train.jsonl"
    lines = [json.dumps({"prompt": f"once {n}", "completion": "upon a time"}) for n in range(2000)]
    path.write_text("\n".join(lines))
    chatml.save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, "-c", LOAD, str(path), str(tmp_path / "tokenizer")]
    pipe = subprocess.PIPE
    together = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for process in together:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = []
    for process in together:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in together:
        said.append(process.communicate(timeout=120)[0])
        assert process.returncode == 0
    examples = load_dataset(path, PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer")).examples
    assert said == [f"True {hash(tuple(examples))}\n"] * 3
    assert len(entries(cache)) == 1


def test_threads_change_nothing(
    chatml: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORALAB_CACHE_GB", "0")
    path = tmp_path / "train.jsonl"
    lines = [json.dumps({"prompt": f"once {n}", "completion": "upon " * (n % 7 + 1)}) for n in range(3000)]
    path.write_text("\n".join(lines))
    one = load_dataset(path, chatml)
    monkeypatch.setenv("RAYON_NUM_THREADS", "4")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    threads = Path("/proc/self/task")
    before = len(list(threads.iterdir())) if threads.is_dir() else 0
    many = load_dataset(path, chatml)
    assert not threads.is_dir() or len(list(threads.iterdir())) > before
    assert_same(one, many)


def itself(entry: Entry) -> Entry:
    return entry


def zeros(count: int) -> Callable[[Path], Filled]:
    """Fill an entry with so many zeros."""

    def fill(folder: Path) -> Filled:
        (folder / "ids").write_bytes(bytes(4 * count))
        return Filled({"ids": ("int32", count)}, {"a": 1})

    return fill


def test_the_longest_unused_go_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORALAB_CACHE_GB", "1e-5")  # 10,000 bytes
    paths = [cache / "examples" / (digit * 64) for digit in "123"]
    stranger = cache / "examples" / "notes"
    stranger.mkdir(parents=True)
    abandoned = cache / "examples" / f".{'4' * 64}.abc.tmp"
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))
    for path in paths[:2]:
        assert write_entry(path, zeros(900), itself)
    now = time.time()
    os.utime(paths[0], (now - 20, now - 20))
    os.utime(paths[1], (now - 10, now - 10))
    found = read_entry(paths[0], itself)
    assert found is not None
    assert found.arrays["ids"].tolist() == [0] * 900
    assert found.facts == {"a": 1}
    assert write_entry(paths[2], zeros(900), itself)
    assert entries(cache) == sorted([paths[0], paths[2], stranger])
    assert found.arrays["ids"].sum() == 0
    assert write_entry(paths[1], zeros(9000), itself) is None
    assert entries(cache) == sorted([paths[0], paths[2], stranger])


def test_where_the_cache_is(chatml: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder() -> str | None:
        path = entry_path("a", {}, chatml)
        return str(path.parents[1]) if path else None

    monkeypatch.delenv("LORALAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/a")
    assert folder() == "/a/loralab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/b")
    assert folder() == "/b/.cache/loralab"
    monkeypatch.setenv("HOME", "c")
    assert folder() is None
    monkeypatch.setenv("LORALAB_CACHE", "/d")
    assert folder() == "/d"
    monkeypatch.setenv("LORALAB_CACHE_GB", "0")
    assert folder() is None
    for wrong in ("two", "-1", "nan"):
        monkeypatch.setenv("LORALAB_CACHE_GB", wrong)
        with pytest.raises(ConfigError, match="expected a number of gigabytes"):
            folder()


def test_a_template_that_reads_the_clock_is_not_kept(
    chatml: PreTrainedTokenizerFast, rows: Path, cache: Path
) -> None:
    dated = deepcopy(chatml)
    dated.chat_template = f"{{{{ strftime_now('%Y') }}}}{chatml.chat_template}"
    assert not load_dataset(rows, dated).cached
    assert entries(cache) == []


def test_a_file_with_a_fault_is_never_kept(
    chatml: PreTrainedTokenizerFast, rows: Path, cache: Path, tmp_path: Path
) -> None:
    rows.write_text('{"prompt": "a", "completion": "b"}\n{')
    for _ in range(2):
        with pytest.raises(DataError, match="malformed JSON"):
            load_dataset(rows, chatml)
    for wrong in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DataError):
            load_dataset(wrong, chatml)
    assert entries(cache) == []
