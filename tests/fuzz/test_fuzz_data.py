"""Data of any kind: it is shown and counted, or refused in one line."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

COLUMNS = (
    *("prompt", "completion", "text", "instruction", "input", "output", "messages", "conversations"),
    *("chosen", "rejected", "question", "answer", "tools", "system", "from", "value", "role", "content"),
)
GOOD = [
    {"prompt": "the dog", "completion": "ran to a tree"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"instruction": "say", "input": "", "output": "a dog"},
    {"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected": "c"},
    {"text": "the little dog"},
]
FEW = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

leaf = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "\ud800", "\x00", "<|end|>"])
)
value = st.recursive(
    leaf,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
row = (
    st.sampled_from(GOOD)
    | st.dictionaries(st.sampled_from(COLUMNS), value, max_size=3)
    | st.builds(
        lambda good, more: {**good, **more},
        st.sampled_from(GOOD),
        st.dictionaries(st.sampled_from(COLUMNS), value, max_size=1),
    )
    | value
)
flags = st.dictionaries(
    st.sampled_from(
        ["format", "template", "columns", "cutoff-length", "overlap-length", "min-chars", "eval-split"]
    ),
    st.sampled_from(
        ["auto", "alpaca", "messages", "text", "plain", "chatml", "prompt=text", "=", "2", "16", "0.3"]
    )
    | st.text(alphabet=st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=6),
    max_size=1,
)


def damage(content: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    """Replace pieces of a file: at a place (of 1000), so many bytes, by others."""
    for where, length, other in cuts:
        start = len(content) * where // 1000
        content = content[:start] + other + content[start + length :]
    return content


cuts = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 9), st.binary(max_size=4)), min_size=1, max_size=3
)


def as_csv() -> bytes:
    stream = io.StringIO()
    rows = [GOOD[0], {"prompt": 'a "big"\nred', "completion": "bird, sun"}]
    writer = csv.DictWriter(stream, ["prompt", "completion"])
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def as_parquet() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([GOOD[0], GOOD[0]]), stream)
    return stream.getvalue()


WHOLE = {
    ".jsonl": "".join(json.dumps(GOOD[n]) + "\n" for n in (0, 0)).encode(),
    ".json": json.dumps([GOOD[1], GOOD[1]], indent=1).encode(),
    ".csv": as_csv(),
    ".txt": b"the dog ran\n\n\nto a big tree\r\n" * 3,
    ".parquet": as_parquet(),
}


def show(place: Any, name: str, content: bytes, given_flags: dict[str, str]) -> None:
    """Hold `loralab data` of a file to its promise."""
    (place.folder / name).write_bytes(content)
    words = [f"--{flag}={text}" for flag, text in given_flags.items()]
    place.check("data", name, "--model", "tiny", *words, may_find=True)
    Path(name).unlink()


@settings(FEW, max_examples=90)
@given(rows=st.lists(row, max_size=4), whole=st.booleans(), given_flags=flags)
def test_any_rows(place: Any, rows: list[Any], whole: bool, given_flags: dict[str, str]) -> None:
    text = json.dumps(rows) if whole else "".join(json.dumps(one) + "\n" for one in rows)
    show(place, "fuzz.json" if whole else "fuzz.jsonl", text.encode(), given_flags)


@settings(FEW, max_examples=35)
@given(content=st.binary(max_size=60), suffix=st.sampled_from([*WHOLE, ".tsv", ".xyz"]), given_flags=flags)
def test_any_bytes(place: Any, content: bytes, suffix: str, given_flags: dict[str, str]) -> None:
    show(place, f"fuzz{suffix}", content, given_flags)


@settings(FEW, max_examples=60)
@given(kind=st.sampled_from(list(WHOLE)), cuts=cuts)
def test_a_damaged_file(place: Any, kind: str, cuts: list[tuple[int, int, bytes]]) -> None:
    show(place, f"fuzz{kind}", damage(WHOLE[kind], cuts), {})
