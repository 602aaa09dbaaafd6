"""Files become rows, and a bad file is answered with the place of the fault."""

import json
from pathlib import Path

import pytest

from loralab.data.sources import read_rows
from loralab.errors import DataError


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
        ("a.csv", b"a,b\n", "cannot be read; convert it to .txt, .json, .jsonl"),
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


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this is a folder"):
        read_rows(tmp_path)


def test_every_row_of_a_real_file_is_read(assets: Path) -> None:
    path = assets / "data" / "instruct" / "alpaca_en_demo.json"
    rows = [row for _, row in read_rows(path)]
    assert rows == json.loads(path.read_text(encoding="utf8"))
