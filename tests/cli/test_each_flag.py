"""Each control of the command line changes one value of the settings, and that one only."""

import runpy
from pathlib import Path

import pytest

from loralab.cli.main import make_app
from loralab.training.config import RunConfig

CASES = runpy.run_path(str(Path(__file__).parents[1] / "training" / "test_config.py"))
VALUES = {**CASES["OTHER"], **CASES["CHANGED"]}


def parsed(*words: str) -> RunConfig:
    """Return the settings that `loralab train` would be given."""
    _, bound, _ = make_app().parse_args(["train", *words], exit_on_error=False, print_error=False)
    return bound.arguments.get("config", RunConfig())


def words_for(name: str, value: object) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}={value}"]


@pytest.mark.parametrize("name", RunConfig.model_fields)
def test_a_flag_changes_its_own_setting_and_no_other(name):
    config, plain = parsed(*words_for(name, VALUES[name])), parsed()
    changed = {n for n in RunConfig.model_fields if getattr(config, n) != getattr(plain, n)}
    assert changed == {name}
    assert getattr(config, name) == VALUES[name]
    assert config.model_fields_set == {name}


def test_without_flags_everything_is_left_out():
    assert parsed().model_fields_set == set()
