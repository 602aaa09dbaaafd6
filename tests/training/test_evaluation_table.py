"""The table grows and loses nothing: other people's columns, older columns, rows of two processes at once."""

import csv
import subprocess
import sys

import pytest

from loralab.errors import CheckpointError, DataError
from loralab.training.evaluation.table import COLUMNS, Table


def row(key: str, **more: object) -> dict[str, object]:
    return {"model": "m", "adapter": "base", "loss": 1.25, "tokens": 7, "key": key, **more}


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path / "deep" / "evaluations.csv")


def test_what_is_added_is_read_again(table):
    assert table.rows() == []
    assert not table.path.exists()
    table.add(row("a", comment='two\nlines, "quoted"', loss=0.1 + 0.2))
    table.add(row("b", stride=None or ""))
    first, second = table.rows()
    assert first["loss"] == 0.1 + 0.2
    assert first["tokens"] == 7
    assert first["comment"] == 'two\nlines, "quoted"'
    assert second["stride"] == ""
    assert table.find("a") == first
    assert table.find("c") is None
    assert tuple(table.path.read_text().splitlines()[0].split(",")) == COLUMNS


def test_the_newest_row_of_a_key_is_found(table):
    table.add(row("a", loss=1.0))
    table.add(row("a", loss=2.0))
    assert table.find("a")["loss"] == 2.0


def test_columns_are_added_and_those_of_others_stay(table):
    table.path.parent.mkdir()
    table.path.write_text("key,model,my notes\nold,m,dear\n")
    table.add(row("new", bleu=12.5))
    with table.path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        old, new = list(reader)
    assert list(reader.fieldnames)[:3] == ["key", "model", "my notes"]
    assert (old["my notes"], old["bleu"]) == ("dear", "")
    assert (new["my notes"], new["bleu"]) == ("", "12.5")
    assert table.find("old")["my notes"] == "dear"


def test_a_table_that_went_through_a_spreadsheet_is_read(table):
    table.add(row("a"))
    text = table.path.read_text()
    table.path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    table.add(row("b"))
    assert [found["key"] for found in table.rows()] == ["a", "b"]


def test_a_comment_is_set_in_the_newest_row_of_a_key(table):
    for loss in (1.0, 2.0):
        table.add(row("a", loss=loss))
    table.add(row("b", comment="mine"))
    table.set_comment(["a"], "yes")
    assert [found["comment"] for found in table.rows()] == ["", "yes", "mine"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("loss;key\n1;2\n", r":1: no column 'model', so this is no table of evaluations"),
        ("model,kee\nm,a\n", r"no column 'key'.*Did you mean 'kee'"),
        ("model,key\nm,a\nm,a,b\n", ":3: more cells than the 2 columns"),
        ('model,key\nm,"a"b\n', ":2: malformed CSV"),
        (b"model,key\n\xff,a\n", "cannot be read as a table"),
    ],
)
def test_what_is_no_such_table_is_refused_and_left_alone(table, content, said):
    table.path.parent.mkdir()
    content = content if isinstance(content, bytes) else content.encode()
    table.path.write_bytes(content)
    for use in (table.rows, table.check, lambda: table.add(row("a")), lambda: table.set_comment(["a"], "x")):
        with pytest.raises(DataError, match=said):
            use()
    assert table.path.read_bytes() == content


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written.*choose another --table"):
        Table(tmp_path / "file" / "evaluations.csv").check()


ADD = """
import sys
from pathlib import Path
from loralab.training.evaluation.table import Table
for number in range(15):
    row = {"loss": 1.0, "key": sys.argv[2] + str(number), "metric_" + sys.argv[2]: number}
    Table(Path(sys.argv[1])).add(row)
"""


def test_processes_that_add_at_once_lose_no_row(table):
    workers = [subprocess.Popen([sys.executable, "-c", ADD, str(table.path), name]) for name in "xyz"]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    found = {each["key"]: each for each in table.rows()}
    assert len(found) == len(table.rows()) == 45
    assert all(found[f"{name}{i}"][f"metric_{name}"] == i for name in "xyz" for i in range(15))
