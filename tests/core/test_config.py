"""`LoraConfig`: PEFT's fields, one by one, and what happens to a value that cannot be."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest

from loralab.adapters.peft_format import read_config
from loralab.core.config import FORMAT_VERSION, LoraConfig, TaskType
from loralab.errors import AdapterError, ConfigError

NOT_IMPLEMENTED: dict[str, Any] = {
    "alora_invocation_tokens": [1],
    "arrow_config": {"top_k": 2},
    "use_bdlora": {"nblocks": 2},
    "velora_config": {"rank": 1},
    "monteclora_config": {"n": 2},
    "kasa_config": {"svd": True},
    "use_qalora": True,
    "megatron_config": {"tensor_model_parallel_size": 2},
}


def test_the_file_has_the_keys_and_defaults_of_peft() -> None:
    theirs = peft.LoraConfig().to_dict()
    theirs.pop("runtime_config", None)
    ours = json.loads(LoraConfig().to_json())
    assert ours == theirs | {"peft_type": "LORA", "inference_mode": True, "peft_version": FORMAT_VERSION}
    assert peft.__version__ == FORMAT_VERSION


@pytest.mark.parametrize("name", sorted(peft.LoraConfig().to_dict()))
def test_every_field_of_peft_is_accepted_at_its_default(name: str) -> None:
    value = peft.LoraConfig().to_dict()[name]
    plain = value.value if name == "peft_type" else value
    LoraConfig(**{name: plain})


@pytest.mark.parametrize("name", NOT_IMPLEMENTED)
def test_what_is_not_implemented_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = .* not supported"):
        LoraConfig(**{name: NOT_IMPLEMENTED[name]})


def test_no_field_is_accepted_and_ignored() -> None:
    """Each field either is refused when switched on, or has a test of its effect elsewhere."""
    used = {
        *("r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "bias", "use_rslora"),
        *("modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
        *("alpha_pattern", "inference_mode", "use_dora", "lora_bias"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "target_parameters"),
        *("trainable_token_indices", "ensure_weight_tying", "layer_replication"),
    }
    stored = {
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("fan_in_fan_out", "qalora_group_size", "megatron_core", "runtime_config"),
    }
    assert {field.name for field in dataclasses.fields(LoraConfig)} == used | stored | NOT_IMPLEMENTED.keys()


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": -1}, "r is -1"),
        ({"r": 2.5}, "r is 2.5"),
        ({"r": "8"}, "r is '8'"),
        ({"r": True}, "r is True"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\] is 0"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"alpha_pattern": {"q_proj": -2}}, r"alpha_pattern\['q_proj'\] is -2"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"lora_dropout": -0.1}, "lora_dropout is -0.1"),
        ({"lora_dropout": "a lot"}, "lora_dropout is 'a lot'"),
        ({"lora_dropout": None}, "lora_dropout is None"),
        ({"bias": "lora"}, "bias is 'lora'"),
        ({"task_type": "CAUSAL"}, "task_type is 'CAUSAL'.*Did you mean 'CAUSAL_LM'"),
        ({"target_modules": 5}, "target_modules is 5"),
        ({"layers_to_transform": "3"}, "layers_to_transform is '3'"),
        ({"modules_to_save": "head"}, "modules_to_save is 'head'"),
        ({"layers_to_transform": [1], "target_modules": ".*q"}, "layers_to_transform needs target_modules"),
        ({"layers_pattern": "h", "target_modules": ["q"]}, "layers_pattern needs layers_to_transform"),
    ],
)
def test_a_value_that_cannot_be_is_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        LoraConfig(**settings)


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        LoraConfig(r=0, lora_alpha=-1, lora_dropout=2, bias="some", task_type="LM", use_qalora=True)
    for name in ("r is 0", "lora_alpha", "lora_dropout", "bias is 'some'", "task_type", "use_qalora"):
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scaling() -> None:
    config = LoraConfig(r=16, lora_alpha=8, rank_pattern={"q_proj": 4}, alpha_pattern={r"h\.0\..*": 32})
    assert config.scaling_of("h.1.up_proj") == 0.5
    assert config.scaling_of("h.1.q_proj") == 2.0
    assert config.scaling_of("h.0.q_proj") == 8.0
    assert dataclasses.replace(config, use_rslora=True).scaling_of("h.0.q_proj") == 16.0


def test_of_two_patterns_the_first_wins_and_a_key_is_a_regex_of_the_end() -> None:
    config = LoraConfig(rank_pattern={r"layers\.\d\.q_proj": 2, "q_proj": 4, "proj": 5})
    assert config.rank_of("model.layers.1.q_proj") == 2
    assert config.rank_of("model.layers.11.q_proj") == 4
    assert config.rank_of("q_proj") == 4
    assert config.rank_of("qq_proj") == 8
    assert config.rank_of("q_proj.inner") == 8


def test_the_text_of_a_config_is_always_the_same_bytes() -> None:
    names = [f"m{number}" for number in range(20)]
    first = LoraConfig(target_modules=names, exclude_modules=names[5:], task_type=TaskType.CAUSAL_LM)
    second = LoraConfig(target_modules=names[::-1], exclude_modules=set(names[5:]), task_type="CAUSAL_LM")
    assert first.to_json() == second.to_json()
    again = LoraConfig.from_dict(json.loads(first.to_json()))
    assert again.to_json() == first.to_json()
    assert again == dataclasses.replace(first, inference_mode=True)


def test_peft_reads_our_text_and_we_read_theirs(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "r": 3,
        "lora_alpha": 5,
        "target_modules": ["q", "v"],
        "use_rslora": True,
        "rank_pattern": {"q": 4},
        "modules_to_save": ["head"],
        "layers_to_transform": [1, 2],
        "task_type": "CAUSAL_LM",
    }
    (tmp_path / "adapter_config.json").write_text(LoraConfig(**settings).to_json())
    theirs = peft.LoraConfig.from_pretrained(tmp_path)
    assert {key: getattr(theirs, key) for key in settings} == settings | {"target_modules": {"q", "v"}}
    peft.LoraConfig(**settings).save_pretrained(str(tmp_path))
    assert read_config(tmp_path) == LoraConfig(**settings)


def test_unknown_keys_that_are_off_are_passed_over() -> None:
    minimal = {"peft_type": "LORA", "r": 4, "target_modules": ["q"]}
    off = {"enable_lora": None, "merge_weights": False, "new_thing": {}, "other": [], "text": ""}
    assert LoraConfig.from_dict(minimal | off) == LoraConfig.from_dict(minimal)


@pytest.mark.parametrize("value", [True, 1, 0.5, "x", [1], {"a": 1}])
def test_unknown_keys_that_are_on_are_refused(value: Any) -> None:
    message = r"^a\.json: unknown setting 'use_doras' = .*Did you mean 'use_dora'"
    with pytest.raises(AdapterError, match=message):
        LoraConfig.from_dict({"peft_type": "LORA", "use_doras": value}, where="a.json")


def test_other_methods_are_refused() -> None:
    with pytest.raises(AdapterError, match="peft_type is 'IA3'"):
        LoraConfig.from_dict({"peft_type": "IA3"})


def test_faults_in_a_file_name_the_file() -> None:
    with pytest.raises(AdapterError, match=r"^a\.json: r is 0.*use_qalora"):
        LoraConfig.from_dict({"peft_type": "LORA", "r": 0, "use_qalora": True}, where="a.json")


def test_nulls_that_old_files_hold_are_defaults() -> None:
    nulls = {"rank_pattern": None, "alpha_pattern": None, "loftq_config": None, "layers_to_transform": None}
    assert LoraConfig.from_dict({"peft_type": "LORA"} | nulls).rank_of("q") == 8


def test_a_config_of_an_old_peft_is_read_but_for_what_it_would_change(assets: Path) -> None:
    """This one adapts two of the three parts of a fused projection, which no layer here does."""
    folder = assets / "adapters" / "peft_bloom560m_r8_bin"
    with pytest.raises(AdapterError, match=r"adapter_config\.json: enable_lora is of PEFT before 0\.3"):
        read_config(folder)
    values = json.loads((folder / "adapter_config.json").read_text())
    del values["enable_lora"]
    config = LoraConfig.from_dict(values)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.05)
    assert config.target_modules == {"query_key_value"}
    assert config.base_model_name_or_path == "bigscience/bloom-560m"
