"""What the `data` setting names, and what is drawn of it."""

import json
from collections import Counter
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from loralab.data.dataset import Dataset, load_dataset
from loralab.data.mixture import parse_sources
from loralab.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with three files of 200 rows each, in two of which every fourth row is a copy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    for name in ("a.jsonl", "more/b.csv", "more/a.jsonl"):
        rows = [{"prompt": f"{name} {n - n % 4 // 3}", "completion": "upon"} for n in range(200)]
        if name.endswith("csv"):
            lines = ["prompt,completion", *(",".join(row.values()) for row in rows)]
        else:
            lines = [json.dumps(row) for row in rows]
        Path(name).write_text("\n".join(lines) + "\n")
    return tmp_path


def sources_of(data: Dataset) -> Counter[str]:
    return Counter(example.source for example in data.examples)


def test_several_sources_are_one_data_set(chatml: PreTrainedTokenizerFast, folder: Path) -> None:
    data = load_dataset("a.jsonl + more/b.csv#50 + more/a.jsonl*2", chatml)
    found = [(c.name, c.rows, c.drawn, c.used, c.weight) for c in data.counts]
    assert found == [
        ("a.jsonl", 200, 200, 200, 1.0),
        ("b.csv", 200, 50, 50, 1.0),
        ("more/a.jsonl", 200, 200, 200, 2.0),
    ]
    assert (data.rows, data.used, len(data.examples)) == (600, 450, 650)
    assert sources_of(data)["a.jsonl:1"] == 1
    assert sources_of(data)["more/a.jsonl:1"] == 2
    assert data.tokens == sum(len(example.ids) for example in data.examples)
    # Copies that a weight makes are none; of those in the files a sample has some.
    assert 100 <= data.duplicates < 150


def test_names_are_paths_where_they_would_be_the_same(folder: Path) -> None:
    assert [source.name for source in parse_sources("a.jsonl + more/b.csv")] == ["a.jsonl", "b.csv"]
    assert [source.name for source in parse_sources("more/a.jsonl + a.jsonl")] == ["more/a.jsonl", "a.jsonl"]


def test_a_sample_is_drawn_by_the_rows_themselves(chatml: PreTrainedTokenizerFast, folder: Path) -> None:
    def drawn(data: str) -> list[tuple[int, ...]]:
        return sorted(example.ids for example in load_dataset(data, chatml).examples)

    first = drawn("a.jsonl#60")
    assert len(first) == 60
    lines = Path("a.jsonl").read_text().splitlines()
    Path("a.jsonl").write_text("\n".join(reversed(lines)))
    assert drawn("a.jsonl#60") == first
    assert set(drawn("a.jsonl#30")) <= set(first)
    Path("a.jsonl").write_text("\n".join([*lines, '{"prompt": "new", "completion": "row"}']))
    assert len(set(drawn("a.jsonl#60")) ^ set(first)) <= 4
    assert drawn("a.jsonl#201") == drawn("a.jsonl")
    assert first != drawn("a.jsonl")[:60]


@pytest.mark.parametrize(("weight", "low", "high"), [("0.5", 75, 125), ("2.5", 475, 525), ("1e0", 200, 200)])
def test_a_weight_counts_rows(
    chatml: PreTrainedTokenizerFast, folder: Path, weight: str, low: int, high: int
) -> None:
    data = load_dataset(f"a.jsonl*{weight}", chatml)
    assert low <= len(data.examples) <= high
    assert sources_of(data) == sources_of(load_dataset(f"a.jsonl*{weight}", chatml))
    copies = set(sources_of(data).values())
    assert copies == {"0.5": {1}, "2.5": {2, 3}, "1e0": {1}}[weight]


def test_a_sample_may_have_a_weight(chatml: PreTrainedTokenizerFast, folder: Path) -> None:
    data = load_dataset("a.jsonl#20*3", chatml)
    assert len(data.examples) == 60
    assert data.counts[0].drawn == 20


def test_what_exists_is_taken_as_it_stands(folder: Path) -> None:
    for name in ("a#5.jsonl", "b*2.jsonl", "x + y.jsonl"):
        Path(name).write_text('{"text": "once"}\n')
    sources = parse_sources("a#5.jsonl*3 + b*2.jsonl + x + y.jsonl#1")
    assert [(source.name, source.rows, source.weight) for source in sources] == [
        ("a#5.jsonl", None, 3.0),
        ("b*2.jsonl", None, 1.0),
        ("x + y.jsonl", 1, 1.0),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a.jsonl*1000000", "an epoch has each row up to 1000 times, found '1000000'; for more passes"),
        ("a.jsonl*0", "behind '*' stands how many times an epoch has each row, a number above 0"),
        ("a.jsonl*-1", "found '-1'"),
        ("a.jsonl*inf", "found 'inf'"),
        ("*.jsonl", "Several files are named with ' + ' between"),
        ("a.jsonl#0", "behind '#' stands a number of rows, as train.jsonl#500; found '0'"),
        ("a.jsonl#1.5", "found '1.5'"),
        ("a.jsonl#201", "a.jsonl#201: there are 200 rows; leave out '#201'."),
        ("a.jsonl + a.jsonl", "a.jsonl is named twice; write a.jsonl*2"),
        ("a.jsonl + ", "between two pluses stands a file, and one is missing"),
        ("", "one is missing"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(
    chatml: PreTrainedTokenizerFast, folder: Path, data: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset(data, chatml)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_source_of_another_format_is_an_error(chatml: PreTrainedTokenizerFast, folder: Path) -> None:
    Path("tale.txt").write_text("once")
    with pytest.raises(DataError, match=r"^tale\.txt:1: row has columns 'text'; format 'completion' needs"):
        load_dataset("a.jsonl + tale.txt", chatml)


def test_a_weight_that_leaves_nothing_is_an_error(chatml: PreTrainedTokenizerFast, folder: Path) -> None:
    with pytest.raises(DataError, match="the weight leaves none of its rows"):
        load_dataset("a.jsonl*1e-9", chatml)
