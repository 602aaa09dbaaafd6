"""What a sweep varies, as it is typed, and which values are tried."""

from pathlib import Path
from typing import Any

import pytest

from loralab.errors import ConfigError
from loralab.training.config import RunConfig
from loralab.training.sweep.space import Choices, Range, Space, read_space, why_fixed

pytest.importorskip("optuna", reason="the sweeps' optuna is not installed")

from loralab.training.sweep.asking import Asking

BASE = {"model": "demo", "data": "rows.jsonl", "eval_data": "held.jsonl"}


def only(**flags: str) -> Any:
    """Return the one dimension that flags make."""
    (dimension,) = read_space(BASE, flags).dimensions
    return dimension


# what may be varied


def test_lists_and_ranges_are_read_as_they_are_typed() -> None:
    assert only(r="4,8,16") == Choices("r", (4, 8, 16))
    assert only(learning_rate="1e-4..1e-3:log") == Range("learning_rate", 1e-4, 1e-3, None, True)
    assert only(r="4..33:8") == Range("r", 4, 28, 8, False)
    assert only(lora_dropout="0..0.3:0.1").points() == (0.0, 0.1, 0.2, 0.3)
    assert only(use_dora="true,false") == Choices("use_dora", (True, False))
    assert only(warmup_steps="none,3") == Choices("warmup_steps", (None, 3))
    assert only(lr_scheduler="linear,cosine") == Choices("lr_scheduler", ("linear", "cosine"))
    names = only(target_modules="q_proj,v_proj;all-linear")
    assert names == Choices("target_modules", ("q_proj,v_proj", "all-linear"))


@pytest.mark.parametrize(
    "flags",
    [
        {"r": "4,8,16"},
        {"learning_rate": "0.0001..0.001:log"},
        {"r": "4..28:8"},
        {"target_modules": "q_proj,v_proj;all-linear"},
        {"warmup_steps": "none,3"},
    ],
)
def test_the_text_of_a_dimension_is_what_was_typed(flags: dict[str, str]) -> None:
    assert only(**flags).text == next(iter(flags.values()))


def test_a_flag_of_one_value_is_a_setting_like_those_of_the_file() -> None:
    space = read_space({**BASE, "r": 64, "max_steps": 9}, {"r": "4,8", "max_steps": "30"})
    assert space.first().max_steps == 30
    assert [space.config(values).r for values in space.combinations()] == [4, 8]


def test_every_setting_is_swept_or_says_why_not() -> None:
    fixed = {name for name in RunConfig.model_fields if why_fixed(name)}
    assert {"model", "dtype", "runs", "cutoff_length", "eval_split", "data", "keep_best", "compile"} <= fixed
    swept = set(RunConfig.model_fields) - fixed
    assert {"r", "learning_rate", "optimizer", "epochs", "batch_size", "init", "seed"} <= swept
    # The texts of some may have commas of their own; hard_cut_string may be any text.
    for name in fixed - {"hard_cut_string", "data"}:
        faults = [_refusal(name, text) for text in ("1,2", "1;2", "true,false")]
        assert any(f"{name} cannot be swept" in fault or f"{name} is '1" in fault for fault in faults), name


def _refusal(name: str, text: str) -> str:
    try:
        read_space(BASE, {name: text, "r": "4,8"})
    except ConfigError as error:
        return str(error)
    return ""


def test_training_data_may_be_swept_where_the_validation_data_is_a_file() -> None:
    assert only(data="a.jsonl;a.jsonl + b.jsonl").values == ("a.jsonl", "a.jsonl + b.jsonl")
    with pytest.raises(ConfigError, match=r"data cannot be swept .* judged by the same"):
        read_space({"model": "demo", "eval_split": 0.1}, {"data": "a.jsonl;b.jsonl"})


def test_all_faults_of_flags_are_told_at_once() -> None:
    flags = {"r": "0,4", "lora_alpha": "3..1", "dtype": "float32,bfloat16", "optimizer": "adamw,adamx"}
    with pytest.raises(ConfigError) as error:
        read_space(BASE, flags)
    for name in flags:
        assert name in str(error.value)


def test_values_at_odds_with_each_other_are_told_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match=r"micro_batch_size 4 does not divide .*with batch_size 6"):
        read_space({**BASE, "micro_batch_size": 4}, {"batch_size": "4,6,8"})
    with pytest.raises(ConfigError, match=r"batch_size 5.*batch_size 7"):
        read_space({**BASE, "micro_batch_size": 4}, {"batch_size": "4..8"})


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({}, "nothing is swept"),
        ({"r": "8"}, "nothing is swept"),
        ({"r": "4,4"}, "4 stands there twice"),
        ({"weight_decay": "0..1:log"}, "begins above 0"),
        ({"r": "4..8:9"}, "longer than the range"),
        ({"r": "4..8:2:log"}, "what follows a range"),
        ({"r": "4..8:0"}, "what follows a range"),
        ({"learning_rate": "1e-4..x"}, "learning_rate is 'x'"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(flags: dict[str, str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        read_space(BASE, flags)


def test_a_sweep_needs_validation_data() -> None:
    with pytest.raises(ConfigError, match="--eval-data FILE, or --eval-split"):
        read_space({"model": "demo", "data": "rows.jsonl"}, {"r": "4,8"})


def test_the_number_of_trials_is_no_more_than_there_are_combinations() -> None:
    grid = read_space(BASE, {"r": "4,8", "lora_alpha": "8,16,32"})
    assert (grid.trials(None), grid.trials(4), grid.trials(99)) == (6, 4, 6)
    assert read_space(BASE, {"lora_alpha": "8..16"}).trials(None) == 20
    assert read_space(BASE, {"r": "4..8"}).trials(None) == 5


# which values come next


def ask_all(folder: Path, space: Space, trials: int, stop_after: int = 99) -> list[dict[str, Any]]:
    """Ask until there are no more, or so many; the loss is the rank's distance from 8."""
    folder.mkdir(exist_ok=True)
    asking = Asking(folder, space, trials, 0)
    while stop_after:
        stop_after -= 1
        for asked in asking.more(1):
            asking.finish(asked, abs(asked.values["r"] - 8))
            break
        else:
            break
    return [space.tidy(trial.params) for trial in asking.trials()]


def test_a_grid_is_gone_through_in_order_and_on_after_a_stop(tmp_path: Path) -> None:
    space = read_space(BASE, {"r": "4,8", "seed": "0,1"})
    assert ask_all(tmp_path, space, 4, stop_after=2) == list(space.combinations())[:2]
    assert ask_all(tmp_path, space, 4) == list(space.combinations())


def test_no_combination_is_trained_twice(tmp_path: Path) -> None:
    space = read_space(BASE, {"r": "1..12", "seed": "0,1"})
    found = ask_all(tmp_path, space, 20)
    assert len(found) == 20
    assert all(found.count(values) == 1 for values in found)
    everything = ask_all(tmp_path, space, 24)
    assert sorted(v["r"] for v in everything) == sorted([*range(1, 13)] * 2)


def test_the_same_seed_chooses_the_same_values(tmp_path: Path) -> None:
    space = read_space(BASE, {"r": "4..64", "learning_rate": "1e-4..1e-2:log"})
    found = ask_all(tmp_path / "a", space, 6)
    assert found == ask_all(tmp_path / "b", space, 6)
    assert all(1e-4 <= values["learning_rate"] <= 1e-2 for values in found)
    assert all(float(f"{values['learning_rate']:.4g}") == values["learning_rate"] for values in found)
