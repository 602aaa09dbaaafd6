"""Help is complete and comes at once."""

import os
import subprocess
import sys

import pytest

from loralab.cli.commands import REGISTRY
from loralab.training.config import RunConfig

FLAGS = {
    "train": [
        *("--name", "--model", "--data", "--eval-data", "--runs", "--r", "--lora-alpha", "--lora-dropout"),
        *(
            "--target-modules",
            "--learning-rate",
            "--lr-scheduler",
            "--warmup-steps",
            "--epochs",
            "--max-steps",
        ),
        *("--batch-size", "--micro-batch-size", "--cutoff-length", "--overlap-length", "--eval-steps"),
        *("--save-steps", "--seed", "--dtype", "--overwrite", "--json", "--plain"),
    ],
    "demo": ["--runs", "--json", "--plain"],
    "resume": ["NAME", "--runs", "--json", "--plain"],
    "runs": ["--runs", "--json", "--plain"],
    "data": ["FILE", "--model", "--show", "--json", "--plain"],
    "eval": ["--model", "--adapter", "--data", "--dtype", "--json", "--plain"],
    "generate": ["PROMPT", "--model", "--adapter", "--dtype", "--json", "--plain"],
    "chat": ["--model", "--adapter", "--compare", "--dtype", "--json", "--plain"],
    "merge": ["--model", "--adapter", "--out", "--dtype", "--json", "--plain"],
    "show": ["ADAPTER", "--json", "--plain"],
}
HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "numpy")


@pytest.fixture(scope="module")
def helped() -> dict[str, str]:
    """What each command's help prints, all from one process that imports nothing heavy."""
    code = f"""
import sys
from loralab.cli.main import main
for name in {["", *FLAGS]!r}:
    print("\\f", name, sep="")
    try:
        main([name, "--help"] if name else ["--help"])
    except SystemExit as end:
        assert not end.code, end.code
print("\\floaded", *(name for name in {HEAVY!r} if name in sys.modules))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    sections = (section.split("\n", 1) for section in result.stdout.split("\f")[1:])
    return dict(sections)


def test_help_loads_nothing_heavy(helped):
    assert [name for name in helped if name.startswith("loaded")] == ["loaded"]


def test_every_command_is_listed(helped):
    assert set(FLAGS) <= set(REGISTRY.names)
    words = helped[""].split()
    assert [name for name in REGISTRY.names if name not in words] == []


@pytest.mark.parametrize("name", FLAGS)
def test_a_command_s_help_names_its_flags_and_explains_them(helped, name):
    words = helped[name].replace(",", " ").split()
    assert [flag for flag in FLAGS[name] if flag not in words] == []


def test_the_help_of_train_is_the_settings_own(helped):
    words = " ".join(helped["train"].replace("│", " ").split())
    for field, info in RunConfig.model_fields.items():
        assert f"--{field.replace('_', '-')}" in words
        assert info.description
        assert " ".join(info.description.split())[:40] in words
    for default in ("16", "adamw", "cosine", "kaiming"):
        assert f"[default: {default}]" in words
