"""Settings that defeat themselves are named, each with its code, and usual ones are not."""

import importlib
import pkgutil
from typing import Any

import pytest

from loralab.training import checks
from loralab.training.checks import Given, check_settings
from loralab.training.config import RunConfig

USUAL = {"learning_rate": 3e-4, "r": 16, "lora_alpha": 32.0}


def given(steps: int = 200, examples: int = 500, **changes: Any) -> Given:
    """A run of 200 steps of 8 over 500 examples, evaluated and saved every 20 steps, with changes."""
    facts = {"eval_steps": 20, "save_steps": 20, "narrowest": ("layers.0.k_proj", 64), "width": 512}
    for name in [name for name in changes if name in facts]:
        facts[name] = changes.pop(name)
    return Given(config=RunConfig(**USUAL | changes), steps=steps, examples=examples, **facts)


def codes(run: Given) -> list[str]:
    return [finding.code for finding in check_settings(run)]


def test_a_usual_run_is_not_spoken_of() -> None:
    assert codes(given()) == []


@pytest.mark.parametrize(
    ("code", "near", "over"),
    [
        ("S201", {"warmup_steps": 100}, {"warmup_steps": 200}),
        ("S202", {"warmup_steps": 100}, {"warmup_steps": 101}),
        ("S203", {"steps": 20, "examples": 160, "eval_steps": 5, "save_steps": 5}, {"steps": 19}),
        ("S204", {"batch_size": 500}, {"batch_size": 501}),
        ("S205", {"examples": 160, "eval_steps": None}, {"examples": 152, "eval_steps": None}),
        ("S206", {"examples": 1600}, {"examples": 1601}),
        ("S211", {"learning_rate": 1e-2}, {"learning_rate": 2e-2}),
        ("S212", {"learning_rate": 1e-5}, {"learning_rate": 9e-6}),
        (
            "S213",
            {"learning_rate": 1e-4, "full": True, "width": 1024},
            {"learning_rate": 2e-4, "full": True, "width": 1024},
        ),
        ("S214", {"r": 64}, {"r": 65}),
        ("S215", {"lora_alpha": 256}, {"lora_alpha": 257}),
        ("S215", {"lora_alpha": 64, "use_rslora": True}, {"lora_alpha": 65, "use_rslora": True}),
        ("S216", {"neftune_alpha": 15}, {"neftune_alpha": 16}),
        ("S221", {"eval_steps": 199}, {"eval_steps": 200}),
        ("S222", {"early_stopping": 9}, {"early_stopping": 10}),
        ("S223", {"save_steps": 199}, {"save_steps": 200}),
    ],
)
def test_a_setting_is_named_from_its_limit_on(code: str, near: dict[str, Any], over: dict[str, Any]) -> None:
    assert code not in codes(given(**near))
    assert code in codes(given(**near | over))


def test_a_learning_rate_is_judged_by_what_it_drives() -> None:
    assert codes(given(learning_rate=0.5, optimizer="sgd")) == []
    assert codes(given(learning_rate=5e-6, full=True)) == []
    assert codes(given(learning_rate=2e-4, full=True, width=512)) == []
    assert codes(given(r=65, full=True)) == []


def test_no_validation_data_no_word_of_evaluations() -> None:
    assert codes(given(eval_steps=None, save_steps=None)) == []


def test_a_run_of_one_step_is_only_short() -> None:
    assert codes(given(steps=1, examples=8, eval_steps=1, save_steps=1)) == ["S203"]


def test_a_finding_has_the_numbers_and_what_to_do() -> None:
    (found,) = check_settings(given(warmup_steps=300))
    assert found.severity == "warning"
    assert "300 steps" in found.text
    assert "200" in found.text
    assert "--warmup-steps" in found.fix


def test_every_code_can_be_found_and_is_of_one_file() -> None:
    known = [code.code for code in checks.codes()]
    assert len(set(known)) == len(known)
    assert all(code.startswith("S2") for code in known)
    tested = {mark[0] for mark in test_a_setting_is_named_from_its_limit_on.pytestmark[0].args[1]}
    assert tested == set(known)


@pytest.mark.parametrize("name", [info.name for info in pkgutil.iter_modules(checks.__path__)])
def test_a_file_of_the_door_keeps_its_contract(name: str) -> None:
    module = importlib.import_module(f"loralab.training.checks.{name}")
    assert module.__doc__
    assert module.CODES
    flags = {name.replace("_", "-") for name in RunConfig.model_fields}
    for code in module.CODES:
        named = [word.strip(",;") for word in code.fix.split() if word.startswith("--")]
        assert {word[2:] for word in named} <= flags, code.fix
