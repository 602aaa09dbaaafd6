"""The floors of the house: what may import what, and what an import costs."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["cli", "peft", "webui", "training", "serving", "tools", "data", "adapters", "models", "core"]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the package `folder`/loralab against the project's own contracts."""
    program = Path(sys.executable).with_name("lint-imports")
    return run([str(program), "--config", str(ROOT / "pyproject.toml"), "--no-cache"], folder)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package's Python files; a room that is not built yet stands empty."""
    source = ROOT / "src" / "loralab"
    for file in source.rglob("*.py"):
        target = tmp_path / "loralab" / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    for room in ROOMS:
        (tmp_path / "loralab" / room).mkdir(exist_ok=True)
        (tmp_path / "loralab" / room / "__init__.py").touch()
    return tmp_path


def test_every_import_points_down(copy: Path) -> None:
    result = lint(copy)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("where", "line", "refusal"),
    [
        ("core/__init__.py", "import loralab.data", "loralab.core -> loralab.data"),
        ("core/config.py", "def late():\n    import loralab.cli", "loralab.core.config -> loralab.cli"),
        ("errors.py", "from loralab import core", "loralab.errors -> loralab.core"),
        ("data/types.py", "import loralab.adapters", "loralab.data.types -> loralab.adapters"),
        ("training/__init__.py", "import loralab.cli", "loralab.training -> loralab.cli"),
        ("training/__init__.py", "import loralab.serving", "loralab.training -> loralab.serving"),
        ("peft/__init__.py", "from loralab.cli import main", "loralab.peft -> loralab.cli"),
        ("core/__init__.py", "import transformers", "loralab.core -> transformers"),
        ("training/__init__.py", "import peft", "loralab.training -> peft"),
        ("attic.py", "", "attic"),
    ],
)
def test_a_wrong_import_is_refused(copy: Path, where: str, line: str, refusal: str) -> None:
    with (copy / "loralab" / where).open("a", encoding="utf8") as file:
        file.write(f"\n{line}\n")
    result = lint(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert refusal in result.stdout


def test_core_imports_torch_and_the_standard_library_only() -> None:
    graph = grimp.build_graph("loralab", include_external_packages=True, cache_dir=None)
    allowed = {"loralab", "torch", *sys.stdlib_module_names}
    strangers = {
        f"{module} imports {name}"
        for module in {"loralab.errors", "loralab.core", *graph.find_descendants("loralab.core")}
        for name in graph.find_modules_directly_imported_by(module)
        if name.split(".")[0] not in allowed
    }
    assert not strangers


def loaded_by(modules: list[str], names: list[str]) -> str:
    """Say which of `names` a fresh interpreter has loaded once `modules` are imported."""
    code = f"import sys, {', '.join(modules)}; print(*(name for name in {names!r} if name in sys.modules))"
    result = run([sys.executable, "-c", code], ROOT / "src")
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_core_loads_nothing_but_torch() -> None:
    heavy = ["transformers", "datasets", "pydantic", "accelerate", "tokenizers", "safetensors", "fastapi"]
    files = (ROOT / "src" / "loralab" / "core").rglob("*.py")
    modules = [".".join(file.relative_to(ROOT / "src").with_suffix("").parts) for file in files]
    assert loaded_by([module.removesuffix(".__init__") for module in modules], ["torch", *heavy]) == "torch"


@pytest.mark.parametrize("module", ["loralab.cli.main", "loralab.data.formats", "loralab.data.sources"])
def test_what_help_needs_loads_no_torch(module: str) -> None:
    if find_spec(module) is None:
        pytest.skip(f"{module} does not exist yet")
    assert loaded_by([module], ["torch", "transformers", "datasets"]) == ""


def test_the_package_root_loads_no_torch() -> None:
    assert loaded_by(["loralab"], ["torch", "transformers"]) == ""
