"""Damaged and hand-made adapter folders: shown, used, merged, or refused in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

FEW = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
COMMANDS = {
    "show": ("show", "bad"),
    "eval": ("eval", "--model", "tiny", "--data", "eval.jsonl", "--adapter", "bad", "--again"),
    "chat": ("chat", "--model", "tiny", "--adapter", "bad", "--max-new-tokens", "2"),
    "merge": ("merge", "--model", "tiny", "--adapter", "bad", "--out", "merged"),
}
KEYS = (
    *("r", "lora_alpha", "target_modules", "peft_type", "use_rslora", "use_dora", "bias", "fan_in_fan_out"),
    *("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "layers_pattern"),
    *("base_model_name_or_path", "task_type", "lora_dropout", "init_lora_weights", "exclude_modules"),
    *("target_parameters", "trainable_token_indices", "megatron_config", "loftq_config", "auto_mapping"),
)
command = st.sampled_from(list(COMMANDS))
text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=6)
leaf = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.floats()
    | text
    | st.sampled_from(["LORA", "IA3", "all", "q_proj", "all-linear", ".*", "(", "lora_only", 10**30])
)
value = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text | st.just("q_proj"), inner, max_size=2),
    max_leaves=5,
)
cuts = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 9), st.binary(max_size=4)), min_size=1, max_size=3
)
FILES = ("adapter_config.json", "adapter_model.safetensors", "loralab.json")


def hold(place: Any, name: str) -> None:
    """Hold a command on the adapter "bad" to its promise, and take what it made away."""
    place.check(*COMMANDS[name], typed="the dog\n")
    shutil.rmtree("merged", ignore_errors=True)


@pytest.fixture
def poet(place: Any) -> Path:
    """The whole adapter."""
    return place.folder / "runs/poet/adapter"


def copy(poet: Path) -> Path:
    shutil.rmtree("bad", ignore_errors=True)
    shutil.copytree(poet, "bad")
    return Path("bad")


@settings(FEW, max_examples=70)
@given(name=command, changes=st.dictionaries(st.sampled_from(KEYS) | text, value, min_size=1, max_size=2))
def test_any_config(place: Any, poet: Path, name: str, changes: dict[str, Any]) -> None:
    path = copy(poet) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    hold(place, name)


@settings(FEW, max_examples=50)
@given(name=command, file=st.sampled_from(FILES), cuts=cuts)
def test_a_damaged_file(
    place: Any, poet: Path, name: str, file: str, cuts: list[tuple[int, int, bytes]]
) -> None:
    path = copy(poet) / file
    content = path.read_bytes()
    # The header of the weights is where most can go wrong.
    size = min(len(content), 4000)
    for where, length, other in cuts:
        start = size * where // 1000
        content = content[:start] + other + content[start + length :]
    path.write_bytes(content)
    hold(place, name)


@settings(FEW, max_examples=25)
@given(name=command, file=st.sampled_from(FILES), content=st.binary(max_size=50), share=st.floats(0, 1))
def test_any_bytes(place: Any, poet: Path, name: str, file: str, content: bytes, share: float) -> None:
    path = copy(poet) / file
    path.write_bytes(content or path.read_bytes()[: int(share * path.stat().st_size)])
    hold(place, name)


@settings(FEW, max_examples=35)
@given(
    name=command,
    which=st.integers(0, 99),
    key=st.none()
    | text.filter(bool)
    | st.sampled_from(["lora_A.weight", "base_model.model.x.lora_B.weight"]),
    shape=st.lists(st.integers(0, 20), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn]),
    fill=st.sampled_from([0.0, 1.0, float("nan"), float("inf"), 1e30]),
)
def test_other_tensors(
    place: Any, poet: Path, name: str, which: int, key: str | None, shape: list[int], dtype: Any, fill: float
) -> None:
    path = copy(poet) / "adapter_model.safetensors"
    tensors = load_file(path)
    old = sorted(tensors)[which % len(tensors)]
    kept = tensors.pop(old)
    made = torch.full(shape if which % 2 else kept.shape, fill).to(dtype)
    tensors[old if key is None else key] = made
    save_file(tensors, path)
    hold(place, name)
