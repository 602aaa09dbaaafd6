"""The settings of single initialisations: what is accepted, written and read."""

import dataclasses
import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loralab import LoraConfig, get_peft_model
from loralab.core.init_config import CordaConfig, EvaConfig, LoftQConfig, LoraGAConfig
from loralab.errors import (
    AdapterError,
    ConfigError,
)

toy = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("toy.py"))))
net, config, prepared, LINEAR = (toy.net, toy.config, toy.prepared, toy.LINEAR)


@pytest.mark.parametrize(
    ("name", "settings", "fault"),
    [
        ("loftq", {"loftq_bits": 3}, "loftq_bits is 3; expected 2, 4 or 8"),
        ("loftq", {"loftq_iter": 0}, "loftq_iter is 0"),
        ("loftq", {"loftq_iter": True}, "loftq_iter is True"),
        ("loftq", {"loftq_bit": 4}, "unknown setting 'loftq_bit'.* Did you mean 'loftq_bits'"),
        ("eva", {"rho": 0.5}, "rho is 0.5; expected a number of at least 1"),
        ("eva", {"rho": float("inf")}, "rho is inf"),
        ("eva", {"tau": 1.1}, "tau is 1.1; it is a cosine, from 0 to 1"),
        ("eva", {"label_mask_value": None}, "label_mask_value is None"),
        (
            "corda",
            {"corda_method": "imp"},
            "corda_method is 'imp'; expected 'ipm', 'kpm'. Did you mean 'ipm'",
        ),
        ("corda", {"cache_file": 5}, "cache_file is 5; expected a path"),
        ("corda", {"statistics": {}}, "unknown setting 'statistics'"),
        ("lora_ga", {"direction": "ArBR"}, "direction is 'ArBR'; expected .* Did you mean"),
        ("lora_ga", {"scale": "stabel"}, "scale is 'stabel'; .* Did you mean 'stable'"),
        ("lora_ga", {"stable_gamma": 0}, "stable_gamma is 0; expected a number above 0"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(name: str, settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}_config: {fault}") as caught:
        LoraConfig(init_lora_weights=name, **{f"{name}_config": settings})
    assert "\n" not in str(caught.value)
    with pytest.raises(AdapterError, match=f"^a.json: {name}_config: {fault}"):
        LoraConfig.from_dict({"init_lora_weights": name, f"{name}_config": settings}, where="a.json")


@pytest.mark.parametrize("value", [5, "ipm", [1], EvaConfig()], ids=repr)
def test_a_setting_of_another_kind_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="corda_config: expected a CordaConfig or a dictionary"):
        LoraConfig(init_lora_weights="corda", corda_config=value)


def test_several_faults_are_reported_at_once() -> None:
    with pytest.raises(ConfigError, match=r"loftq_bits is 5.*; eva_config: rho is 0.*; r is 0"):
        LoraConfig(r=0, loftq_config={"loftq_bits": 5}, eva_config={"rho": 0})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("loftq", LoftQConfig(8, 3)),
        ("eva", EvaConfig(rho=1.5, whiten=True)),
        ("corda", CordaConfig(cache_file="a/b", corda_method="kpm")),
        ("lora_ga", LoraGAConfig("ArBr", "unit", 7)),
    ],
)
def test_settings_are_written_as_dictionaries_and_read_back_equal(name: str, settings: Any) -> None:
    first = config(name, **{f"{name}_config": settings})
    read = LoraConfig.from_dict(json.loads(first.to_json()))
    assert read == dataclasses.replace(first, inference_mode=True)
    assert getattr(read, f"{name}_config") == settings
    values = json.loads(first.to_json())[f"{name}_config"]
    assert values == {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.init}
    assert LoraConfig.from_dict({f"{name}_config": values, "init_lora_weights": name}) is not None


def test_absent_settings_are_written_as_peft_does() -> None:
    values = LoraConfig().to_dict()
    assert values["loftq_config"] == {}
    assert [values[f"{name}_config"] for name in ("eva", "corda", "lora_ga")] == [None] * 3
    assert isinstance(LoraConfig(init_lora_weights="eva").eva_config, EvaConfig)
    assert isinstance(LoraConfig(init_lora_weights="loftq", loftq_config={}).loftq_config, LoftQConfig)


def test_settings_of_another_initialisation_are_kept_in_files_and_refused_for_a_new_adapter() -> None:
    unused = LoraConfig(target_modules=LINEAR, eva_config=EvaConfig())
    assert LoraConfig.from_dict(json.loads(unused.to_json())).eva_config == EvaConfig()
    with pytest.raises(ConfigError, match=r"eva_config has no effect with init_lora_weights=True; set"):
        get_peft_model(net(), unused)


def test_statistics_are_in_memory_only() -> None:
    base = net()
    made = prepared("corda", base)
    bare = config("corda")
    assert made.corda_config.statistics.keys() == set(LINEAR)
    assert made == bare
    assert repr(made) == repr(bare)
    assert made.to_json() == bare.to_json()
    copied = dataclasses.replace(made, inference_mode=True)
    assert copied.corda_config.statistics is made.corda_config.statistics
