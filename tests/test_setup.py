"""The project's set-up: pins, make targets, what the wheel carries."""

import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
PYTHONS = ["3.10", "3.11", "3.12"]


def pins(python: str) -> Iterator[Requirement]:
    """The lines of constraints.txt that hold on Linux under CPython `python`."""
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.5",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
    }
    for line in (ROOT / "constraints.txt").read_text(encoding="utf8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate(machine):
                yield pin


@pytest.mark.parametrize("python", PYTHONS)
def test_each_package_has_one_exact_version(python: str) -> None:
    names = [canonicalize_name(pin.name) for pin in pins(python)]
    assert len(names) == len(set(names))
    for pin in pins(python):
        assert [part.operator for part in pin.specifier] == ["=="], str(pin)


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_within_its_range(python: str) -> None:
    pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins(python)}
    extras = PROJECT["optional-dependencies"].values()
    wanted = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            version = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement} against {version}"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_pins_fit_a_cpu_build_of_torch(python: str) -> None:
    pinned = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins(python)}
    # A local part such as "+cpu" in the pin would refuse every other build of the same version.
    assert "+" not in pinned["torch"]
    assert not [name for name in pinned if name.startswith(("nvidia-", "cuda-", "triton"))]


def plan(folder: Path, target: str, ci: str = "") -> str:
    """What `make target` would run in `folder`."""
    command = ["make", "--dry-run", "--file", str(ROOT / "Makefile"), target, f"CI={ci}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder in which `make` believes that everything is installed."""
    long_ago = time.time() - 1000
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        os.utime(tmp_path / name, (long_ago, long_ago))
    for name in ("bin/pip", "base.stamp", "dev.stamp"):
        (tmp_path / ".venv" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".venv" / name).touch()
    return tmp_path


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_make_installs_once_and_again_when_the_requirements_change(installed: Path, target: str) -> None:
    assert "pip install" not in plan(installed, target)
    os.utime(installed / "constraints.txt", (time.time() + 1000, time.time() + 1000))
    assert "--constraint constraints.txt" in plan(installed, target)


def test_the_demo_needs_no_developer_tools(installed: Path) -> None:
    for stamp in (installed / ".venv").glob("*.stamp"):
        stamp.unlink()
    assert "[dev]" not in plan(installed, "demo")
    assert "[dev]" in plan(installed, "test")


def test_slow_tests_run_in_ci_only(installed: Path) -> None:
    assert '-m "not slow"' in plan(installed, "test")
    assert "not slow" not in plan(installed, "test", ci="true")


def test_help_names_every_target(tmp_path: Path) -> None:
    result = subprocess.run(
        ["make", "--file", str(ROOT / "Makefile")], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for target in ("demo", "test", "lint", "check", "clean"):
        assert f"make {target} " in result.stdout


def test_ci_runs_the_checks() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "exec make check" in script.read_text(encoding="utf8")


def test_the_wheel_carries_every_file_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is in the extra 'dev'")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = set(archive.namelist())
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    missing = {name for name in files - carried if "__pycache__" not in name and ".egg-info" not in name}
    assert not missing
    assert "loralab/py.typed" in carried
