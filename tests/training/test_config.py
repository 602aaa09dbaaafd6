"""The settings of a run: what is accepted, what is refused and in which words."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralab.errors import ConfigError
from loralab.training.config import RunConfig, check, layered, read_toml

CHANGED = {
    "name": "a-run.2",
    "model": 'folder with "quotes" and \\ and ü',
    "runs": "elsewhere",
    "effort": "quick",
    "data": "line\nbreak.txt",
    "eval_split": 0.1,
    "format": "alpaca",
    "columns": "prompt=question",
    "template": "chatml",
    "train_on": "last-answer",
    "cutoff_length": 256,
    "too_long": "cut",
    "overlap_length": 16,
    "hard_cut_string": "\\n\\n\\n",
    "newline_favor_length": 3,
    "min_chars": 5,
    "add_bos": False,
    "add_eos": False,
    "r": 3,
    "lora_alpha": 0.5,
    "lora_dropout": 0.25,
    "target_modules": r"model\.layers\.[0-3]\..*_proj",
    "last_layers": 2,
    "modules_to_save": "norm, lm_head",
    "use_rslora": True,
    "use_dora": True,
    "init": "pissa",
    "from_adapter": "another",
    "optimizer": "adafactor",
    "learning_rate": 1.2345678901234567e-4,
    "lora_plus_ratio": 16.0,
    "lr_scheduler": "cosine_with_restarts",
    "lr_cycles": 3,
    "warmup_steps": 0,
    "weight_decay": 0.01,
    "max_grad_norm": 0.3,
    "epochs": 1.5,
    "batch_size": 6,
    "micro_batch_size": 2,
    "neftune_alpha": 5.0,
    "label_smoothing": 0.1,
    "seed": 2**32 - 1,
    "dtype": "bfloat16",
    "quantize": "int8",
    "activation_checkpointing": True,
    "max_memory": 2.5,
    "shard": True,
    "compile": True,
    "allow_pickle": True,
    "eval_steps": 4,
    "save_steps": 5,
    "keep_checkpoints": 1,
    "keep_best": False,
    "stop_at_loss": 0.5,
    "early_stopping": 3,
    "sample_prompts": "prompts.txt",
    "sample_steps": 7,
    "general_data": "general.txt",
    "report_to": "csv",
}
OTHER = {
    "eval_data": "e.jsonl",
    "full": True,
    "lr_scheduler": "polynomial",
    "lr_power": 2.0,
    "warmup_ratio": 0.1,
    "max_steps": 9,
}
"""What cannot stand beside one of the others."""


def refusal(**values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("values", [{}, CHANGED, OTHER], ids=["defaults", "changed", "the others"])
def test_what_is_written_as_toml_is_read_back(tmp_path: Path, values):
    config = RunConfig(**values)
    path = tmp_path / "run.toml"
    path.write_bytes(config.to_toml().encode())
    assert check(read_toml(path)) == config


def test_the_round_trip_above_changes_every_setting():
    assert CHANGED.keys() | OTHER.keys() == RunConfig.model_fields.keys()
    changed = [*CHANGED.items(), *OTHER.items()]
    assert all(getattr(RunConfig(), name) != value for name, value in changed)


@given(st.text(), st.floats(min_value=1e-300, max_value=1e300))
def test_any_text_and_number_survive_toml(text, number):
    config = RunConfig(data=text, learning_rate=number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_, **__: config.to_toml())
        assert check(read_toml(Path("x"))) == config


def test_a_run_s_length_is_said_once():
    assert refusal(epochs=2, max_steps=9) == (
        "epochs has no effect beside max_steps, which says how long the run is; choose one"
    )
    assert check({"epochs": 3.0, "max_steps": 9}).max_steps == 9, "as a run's own file has them"
    assert check({"effort": "thorough", "max_steps": 9}).max_steps == 9


def test_the_later_of_two_lengths_holds():
    file, copied = {"epochs": 20.0, "r": 2}, {"epochs": 3.0, "max_steps": 60, "r": 4}
    assert layered(file, {"max_steps": 5}) == {"r": 2, "max_steps": 5}
    assert layered(copied, {"epochs": 2.0}) == {"r": 4, "epochs": 2.0}
    assert layered(copied, file, {"seed": 1}) == {"epochs": 20.0, "r": 2, "seed": 1}
    assert layered(copied) == copied


def test_every_setting_is_explained():
    assert [name for name, field in RunConfig.model_fields.items() if not field.description] == []


def test_an_unknown_key_is_met_with_the_nearest_one():
    assert refusal(lora_alfa=3) == "unknown setting 'lora_alfa'. Did you mean 'lora_alpha'?"


def test_all_faults_are_told_at_once():
    said = refusal(r=0, lora_alpha=0, lr_scheduler="cosin", epoch=3, batch_size="many")
    for name in ("r is 0", "lora_alpha is 0", "lr_scheduler is 'cosin'", "'epoch'", "batch_size is 'many'"):
        assert name in said
    assert "'linear', 'cosine', 'constant', " in said
    said = refusal(name="a/b", batch_size=8, micro_batch_size=3, cutoff_length=8, overlap_length=8)
    for name in (
        "name is 'a/b'",
        "micro_batch_size 3",
        "batch_size 8",
        "overlap_length 8",
        "cutoff_length 8",
    ):
        assert name in said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("r", -3),
        ("r", 1.5),
        ("lora_alpha", 0),
        ("lora_alpha", -1),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_dropout", 1),
        ("lora_dropout", -0.1),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("epochs", 0),
        ("epochs", float("inf")),
        ("max_steps", 0),
        ("batch_size", 0),
        ("micro_batch_size", 0),
        ("cutoff_length", 1),
        ("overlap_length", -1),
        ("keep_checkpoints", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("dtype", "int8"),
        ("model", 5),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    assert refusal(**{field: value}).startswith(f"{field} is {value!r}: ")


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "/root", "a\\b", ".hidden", "a..b", "..", ".", "a b", "a\n", "x" * 101, "-r"]
)
def test_a_name_with_a_path_in_it_is_refused(name):
    assert refusal(name=name).startswith(f"name is {name!r}: expected up to 100 letters, digits")


@pytest.mark.parametrize("name", ["poet", "run-2", "v1.0", "_x", "größe", "7", "x" * 100])
def test_a_plain_name_is_taken(name):
    assert check({"name": name}).name == name


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("all-linear", "all-linear"),
        ("attention", "attention"),
        ("feed-forward", "feed-forward"),
        ("q_proj", ["q_proj"]),
        ("q_proj,v_proj", ["q_proj", "v_proj"]),
        (" q_proj , layers.0.v_proj,", ["q_proj", "layers.0.v_proj"]),
        (".*q_proj", ".*q_proj"),
        (r"model\.layers\.[01]\..*", r"model\.layers\.[01]\..*"),
        ("(q|v)_proj", "(q|v)_proj"),
        (r".*\.(0|1)\..*_proj{1,2}", r".*\.(0|1)\..*_proj{1,2}"),
    ],
)
def test_targets_are_a_preset_names_or_a_regex(text, targets):
    assert RunConfig(target_modules=text).targets == targets


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"r = = 3\n", r"not valid TOML: .*line 1"),
        (b"r = 1\nr = 2\n", "not valid TOML"),
        (b"name = '\xff'\n", "not valid TOML"),
    ],
    ids=["missing", "malformed", "twice", "not UTF-8"],
)
def test_a_toml_file_that_cannot_be_read_is_named(tmp_path: Path, content, words):
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(path)) + f": {words}"):
        read_toml(path)


def test_a_folder_is_no_toml_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="is a folder"):
        read_toml(tmp_path)
