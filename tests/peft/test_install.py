"""`import peft` means loralab.peft after `install()`, whether PEFT is there or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import loralab

HERE = str(Path(loralab.__file__).parents[1])

STAND_IN = """
import importlib.metadata, importlib.util, pickle, pkgutil, sys
import loralab.peft
loralab.peft.install()
loralab.peft.install()
import peft, peft.tuners.lora.layer
from peft.tuners.lora import Linear
from peft.utils.hotswap import hotswap_adapter
assert peft is loralab.peft and peft.tuners is loralab.peft.tuners
assert Linear is loralab.peft.tuners.lora.layer.Linear
assert importlib.util.find_spec("peft") is not None
assert importlib.util.find_spec("peft.tuners.lora.layer") is not None
assert importlib.metadata.version("peft") == peft.__version__ == "0.21.2"
assert importlib.metadata.metadata("peft")["Name"] == "peft"
for info in pkgutil.walk_packages(loralab.peft.__path__, "loralab.peft."):
    assert importlib.import_module(info.name[8:]) is sys.modules[info.name], info.name
try:
    import peft.tuners.xlora
except ModuleNotFoundError as error:
    assert "peft.tuners.xlora" in str(error)
else:
    raise AssertionError("a module that is not there")
from transformers.utils import is_peft_available
from transformers.utils.peft_utils import check_peft_version
assert is_peft_available()
check_peft_version("0.20.0")
from accelerate.utils.imports import is_peft_available as accelerate_finds_it
assert accelerate_finds_it()
config = pickle.loads(pickle.dumps(peft.LoraConfig(r=3)))
assert config == peft.LoraConfig(r=3)
assert not any("site-packages/peft/" in (getattr(m, "__file__", None) or "") for m in sys.modules.values())
loralab.peft.uninstall()
assert "peft" not in sys.modules
loralab.peft.uninstall()
print("done")
"""

AFTER_TRANSFORMERS = """
import transformers
from transformers.utils import is_peft_available
assert not is_peft_available()
from transformers import Trainer, trainer_utils
import loralab.peft
loralab.peft.install()
assert is_peft_available()
from torch import nn
config = loralab.peft.LoraConfig(target_modules=["0"])
model = loralab.peft.get_peft_model(nn.Sequential(nn.Linear(2, 2)), config)
assert trainer_utils._is_peft_model(model)
assert not trainer_utils._is_peft_model(nn.Linear(2, 2))
print("done")
"""

AFTER_PEFT = """
import peft
import loralab.peft
try:
    loralab.peft.install()
except ValueError as error:
    assert "loralab.peft.install() before the first import" in str(error), error
    assert "\\n" not in str(error)
assert peft.__file__ != loralab.peft.__file__
print("done")
"""


def run(code: str, environment: dict[str, str], *options: str) -> None:
    done = subprocess.run(
        [sys.executable, *options, "-c", code], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"


@pytest.fixture(scope="module")
def without_peft(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that has every installed package but PEFT."""
    packages = tmp_path_factory.mktemp("packages")
    for folder in [Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]:
        for path in folder.iterdir():
            if not path.name.startswith("peft") and not (packages / path.name).exists():
                (packages / path.name).symlink_to(path)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([HERE, str(packages)]), "PYTHONNOUSERSITE": "1"}


def test_with_peft_installed() -> None:
    run(STAND_IN, {**os.environ, "PYTHONPATH": HERE})


def test_without_peft(without_peft: dict[str, str]) -> None:
    run(STAND_IN, without_peft, "-S")


def test_after_transformers_has_looked_for_it(without_peft: dict[str, str]) -> None:
    run(AFTER_TRANSFORMERS, without_peft, "-S")


def test_peft_itself_is_not_pushed_aside() -> None:
    run(AFTER_PEFT, {**os.environ, "PYTHONPATH": HERE})
