"""Settings of any kind in a TOML file: a run of a step or two, or one line that says what is wrong."""

import json
import shutil
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loralab.training.config import RunConfig

pytestmark = pytest.mark.slow

FEW = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# Compiling takes a minute; the trackers have services of their own.
NAMES = sorted(set(RunConfig.model_fields) - {"compile", "report_to", "quantize", "runs"})

text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)
number = (
    st.integers(-3, 9)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.sampled_from([0.5, 1e-12, 1e12, 1e30, 1e300, -0.0])
)
word = st.sampled_from(
    [
        *("auto", "text", "completion", "alpaca", "plain", "float32", "bfloat16", "cosine", "constant"),
        *("adamw", "sgd", "adafactor", "muon", "pissa", "q_proj", "all-linear", "embeddings", "(", "norm"),
        *(
            "train.jsonl",
            "train.jsonl#2",
            "train.jsonl*2",
            "eval.jsonl + train.jsonl",
            "train.jsonl*",
            "poet",
        ),
        *("tiny", "runs", "a/b", "..", "\x00", "x" * 300, "prompt=completion", "quick", "thorough"),
    ]
)
leaf = number | word | text | st.booleans()
value = leaf | st.lists(leaf, max_size=2) | st.dictionaries(text, leaf, max_size=2) | st.dates()
key = st.sampled_from(NAMES) | text


def fitting(name: str) -> st.SearchStrategy[Any]:
    """Values that are mostly of the right kind for a setting."""
    usual = RunConfig.model_fields[name].default
    if isinstance(usual, bool):
        return st.booleans()
    return number | value if isinstance(usual, int | float) else number | word


some = st.lists(st.sampled_from(NAMES), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: fitting(name) for name in names})
)


def tell(place: Any, content: bytes, *words: str) -> None:
    """Hold `loralab train` of a file to its promise."""
    (place.folder / "fuzz.toml").write_bytes(content)
    place.check("train", *words, "fuzz.toml")
    shutil.rmtree(place.folder / "runs/fuzz", ignore_errors=True)


@settings(FEW, max_examples=60)
@given(values=st.dictionaries(key, value, max_size=4))
def test_any_settings(place: Any, values: dict[str, Any]) -> None:
    tell(place, tomli_w.dumps(values).encode())


@settings(FEW, max_examples=35)
@given(values=some)
def test_settings_of_the_right_kind(place: Any, values: dict[str, Any]) -> None:
    usual = {"model": "tiny", "data": "train.jsonl", "dtype": "float32", "batch_size": 4}
    # No more than a step or two, and no rank that is larger than this machine.
    values = usual | values | {"name": "fuzz", "max_steps": 1, "runs": "runs"}
    values["r"] = values["r"] if isinstance(values.get("r"), int) and values["r"] < 100 else 4
    tell(place, tomli_w.dumps(values).encode())


@settings(FEW, max_examples=35)
@given(content=st.binary(max_size=40) | text.map(str.encode))
def test_any_file(place: Any, content: bytes) -> None:
    tell(place, content)


@settings(FEW, max_examples=25)
@given(
    value=st.recursive(leaf, lambda inner: st.dictionaries(text, inner, max_size=2), max_leaves=6), name=key
)
def test_any_flag(place: Any, value: Any, name: str) -> None:
    given_value = value if isinstance(value, str) else json.dumps(value)
    word = f"--{name.replace('_', '-')}={given_value}"
    place.check("train", "--data", "none.jsonl", word)
