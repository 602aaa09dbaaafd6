"""Files become rows, and a bad file is answered with the place of the fault."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from loralab.data import sources
from loralab.data.sources import find, read_rows
from loralab.errors import ConfigError, DataError

KINDS = sorted(
    path.stem for path in Path(sources.__file__).parent.glob("*.py") if not path.stem.startswith("_")
)


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_jsonl_gives_a_row_a_line_with_its_number(tmp_path: Path) -> None:
    path = write(tmp_path, "train.jsonl", b'{"a": 1}\n\n{"a": "\xe7\x8c\xab"}')
    assert list(read_rows(path)) == [("train.jsonl:1", {"a": 1}), ("train.jsonl:3", {"a": "猫"})]


@pytest.mark.parametrize(
    "content", [b'[{"a": 1}, {"a": 2}]', b'{"version": 3, "data": [{"a": 1}, {"a": 2}]}']
)
def test_json_gives_the_rows_of_its_list(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, "train.json", content)
    assert list(read_rows(path)) == [("train.json:row 1", {"a": 1}), ("train.json:row 2", {"a": 2})]


def test_txt_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path, "tale.txt", b"one\ntwo\n")
    assert list(read_rows(path)) == [("tale.txt:1", {"text": "one\ntwo\n"})]


@pytest.mark.parametrize(("name", "unix"), [("a.jsonl", b'{"a": 1}\n{"a": 2}\n'), ("a.txt", b"one\ntwo\n")])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(
    tmp_path: Path, name: str, unix: bytes
) -> None:
    expected = list(read_rows(write(tmp_path, name, unix)))
    windows = b"\xef\xbb\xbf" + unix.replace(b"\n", b"\r\n")
    assert list(read_rows(write(tmp_path, name, windows))) == expected


def test_the_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    assert len(list(read_rows(write(tmp_path, "A.JSONL", b'{"a": 1}')))) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.txt", b"\xef\xbb\xbf \n", "a.txt: the file is empty"),
        ("a.json", b"[]", "a.json: no rows"),
        ("a.json", b'[\n{"a": 1},\n{"a" 2}\n]', "a.json:3: malformed JSON at column 6"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl:2: malformed JSON at column 7"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "a.jsonl:2: a line must be an object, found a list"),
        ("a.jsonl", b'{"a": 1}\n7\n', "a.jsonl:2: a line must be an object, found a number"),
        ("a.json", b'[{"a": 1}, "b"]', "a.json:row 2: a row must be an object, found a string"),
        ("a.json", b'{"a": [], "b": []}', "found an object with the lists 'a', 'b'"),
        ("a.json", b'{"a": 1}', "found an object with the lists none"),
        ("a.json", b"true", "expected a list of objects, found a boolean"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl:2: not UTF-8: byte 8 of the line is 0xff"),
        ("a.txt", b"one\ntwo \xe9t\xe9\n", "a.txt:2: not UTF-8: byte 5 of the line is 0xe9"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000 + b"}", "a.jsonl:1: "),
        ("a.jsonl", b'{"a": ' + b"1" * 5_000 + b"}", "a.jsonl:1: "),
        ("a.csv", b"", "a.csv: the file is empty"),
        ("a.csv", b"a,b\n", "a.csv: no rows: there is only the line that names the columns"),
        (
            "a.csv",
            b"a,b\n1,2\n3\n",
            "a.csv:3: the row has 1 values; the first line names 2 columns: 'a', 'b'",
        ),
        ("a.csv", b'a,b\n1,2\n"x\ny",3\n1,"2\n3,4\n', "a.csv:5: malformed CSV: unexpected end of data"),
        ("a.csv", b"a,b,a\n1,2,3\n", "a.csv:1: two columns are named 'a'"),
        ("a.csv", b"a,b\n1,\xff\n", "a.csv:2: not UTF-8: byte 3 of the line is 0xff"),
        ("a.parquet", b"PAR1", "a.parquet: cannot be read: "),
        ("a.parquet", b"", "a.parquet: cannot be read: "),
        (
            "a.xlsx",
            b"x",
            "end in '.xlsx' cannot be read; convert it to .csv, .tsv, .json, .jsonl, .parquet, .txt",
        ),
    ],
)
def test_a_bad_file_is_answered_with_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", b"{}")
    with pytest.raises(DataError, match=r"trian\.jsonl: no such file\. Did you mean 'train\.jsonl'\?"):
        read_rows(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path / "absent" / "train.jsonl")


def test_an_ending_makes_no_names_alike(tmp_path: Path) -> None:
    for name in ("a.jsonl", "valid.jsonl", "train.json"):
        write(tmp_path, name, b"{}")
    for name in ("b.jsonl", "test.jsonl"):
        with pytest.raises(DataError, match=r"no such file\.$"):
            find(tmp_path / name)
    with pytest.raises(DataError, match=r"no such file\. Did you mean 'train\.json'\?$"):
        find(tmp_path / "train.jsonl")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this is a folder; name a file in it"):
        read_rows(tmp_path)
    write(tmp_path, "notes.md", b"x")
    with pytest.raises(DataError, match=r"Read as a whole: a folder of \.txt files"):
        read_rows(tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_found_by_its_file(name: str) -> None:
    assert name in sources.names()
    kind = sources.get(name)
    assert importlib.import_module(f"loralab.data.sources.{name}").__doc__
    assert kind.what
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in kind.suffixes)
    with pytest.raises(ConfigError, match=f"Did you mean '{name}'"):
        sources.get(f"{name}x")


def test_csv_gives_strings_with_the_line_each_row_begins_in(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b'\xef\xbb\xbfid,text\r\n1,"one, ""two""\r\nthree"\r\n\r\nNA,\r\n')
    assert list(read_rows(path)) == [
        ("a.csv:2", {"id": "1", "text": 'one, "two"\nthree'}),
        ("a.csv:5", {"id": "NA", "text": ""}),
    ]


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
def test_csv_knows_what_stands_between_values(tmp_path: Path, name: str, separator: str) -> None:
    path = write(tmp_path, name, f"a{separator}b\n1,5{separator}2\n".encode())
    assert list(read_rows(path)) == [(f"{name}:2", {"a": "1,5", "b": "2"})]


def test_csv_takes_long_values(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b"text,b\n" + b"x" * 300_000 + b",1\n")
    assert [len(str(row["text"])) for _, row in read_rows(path)] == [300_000]


def test_parquet_gives_rows_as_json_has_them(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "猫"}]
    table = pyarrow.table(
        {
            "messages": [turns, []],
            "day": [date(2024, 2, 1), None],
            "raw": [b"text", b"\xff"],
            "share": [0.5, 1.0],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == [
        ("a.parquet:row 1", {"messages": turns, "day": "2024-02-01", "raw": "text", "share": 0.5}),
        ("a.parquet:row 2", {"messages": [], "day": None, "raw": {"bytes": 1}, "share": 1.0}),
    ]
    parquet.write_table(table.slice(0, 0), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"^b\.parquet: no rows"):
        list(read_rows(tmp_path / "b.parquet"))


def test_a_folder_of_texts_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "tales"
    folder.mkdir()
    for name, content in (("tale10.txt", b"ten"), ("Tale2.TXT", b"two\r\nlines"), ("a.txt", b" ")):
        write(folder, name, content)
    write(folder, ".hidden.txt", b"x")
    write(folder, "notes.md", b"x")
    assert list(read_rows(folder)) == [
        ("tales/a.txt:1", {"text": " "}),
        ("tales/Tale2.TXT:1", {"text": "two\nlines"}),
        ("tales/tale10.txt:1", {"text": "ten"}),
    ]
    assert find(folder).unread(folder) == ["notes.md"]
    write(folder, "bad.txt", b"one\n\xff")
    with pytest.raises(DataError, match=r"^tales/bad\.txt:2: not UTF-8"):
        list(read_rows(folder))


def test_what_datasets_saved(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"text": [f"row {n}" for n in range(600)], "n": list(range(600))})
    table.select([5, 3]).save_to_disk(tmp_path / "one")
    assert list(read_rows(tmp_path / "one")) == [
        ("one:row 1", {"text": "row 5", "n": 5}),
        ("one:row 2", {"text": "row 3", "n": 3}),
    ]
    datasets.DatasetDict({"train": table, "validation": table.select([7])}).save_to_disk(tmp_path / "two")
    assert [row["n"] for _, row in read_rows(tmp_path / "two")] == list(range(600))
    assert find(tmp_path / "two").unread(tmp_path / "two") == ["split validation"]
    validation = tmp_path / "two:validation"
    assert list(read_rows(validation)) == [("two:validation:row 1", {"text": "row 7", "n": 7})]
    assert all(file.is_file() for file in find(validation).files(validation))
    with pytest.raises(DataError, match=r"has no split 'test'; its splits are 'train', 'validation'"):
        list(read_rows(tmp_path / "two:test"))
    with pytest.raises(DataError, match="has no splits; leave out ':train'"):
        list(read_rows(tmp_path / "one:train"))
    for file in (tmp_path / "one").glob("*.arrow"):
        file.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"one: cannot be read: "):
        list(read_rows(tmp_path / "one"))


def test_a_hub_id_is_no_path_that_is_mistaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", "train.jsonl", b"{}")
    with pytest.raises(DataError, match=r"no such file\. Did you mean 'train\.jsonl'"):
        find(Path("data/train.jsnl"))
    with pytest.raises(DataError, match=r"absent/train\.jsonl: no such file\.$"):
        find(Path("absent/train.jsonl"))
    with pytest.raises(DataError, match="absent: no such file"):
        find(Path("absent"))
    assert find(Path("owner/name:config:train")).name == "hub"
    with pytest.raises(DataError, match=r"^owner/name: no such file, and as a dataset of the hub") as caught:
        list(read_rows(Path("owner/name")))
    assert "\n" not in str(caught.value)


def test_a_hub_dataset_that_was_loaded_before_needs_no_network(tmp_path: Path) -> None:
    # As `datasets` leaves it behind a download: owner___name/config/version/hash.
    write(tmp_path, "a.jsonl", b'{"text": "one"}\n{"text": "two"}\n')
    made = datasets.load_dataset(
        "json", data_files=str(tmp_path / "a.jsonl"), split="train", cache_dir=str(tmp_path / "made")
    )
    (arrow,) = (Path(entry["filename"]) for entry in made.cache_files)
    place = tmp_path / "cache" / "owner___name" / "default" / "0.0.0" / ("0" * 40)
    shutil.copytree(arrow.parent, place)
    (place / arrow.name).rename(place / "name-train.arrow")
    info = json.loads((place / "dataset_info.json").read_text())
    info |= {"dataset_name": "name", "config_name": "default"}
    (place / "dataset_info.json").write_text(json.dumps(info))
    code = (
        "from pathlib import Path; from loralab.data.sources import read_rows; "
        "print(list(read_rows(Path('owner/name'))))"
    )
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[('name:row 1', {'text': 'one'}), ('name:row 2', {'text': 'two'})]\n", done.stderr


def test_every_row_of_a_real_file_is_read(assets: Path) -> None:
    path = assets / "data" / "instruct" / "alpaca_en_demo.json"
    rows = [row for _, row in read_rows(path)]
    assert rows == json.loads(path.read_text(encoding="utf8"))
