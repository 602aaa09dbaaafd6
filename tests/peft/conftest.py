"""Scripts written for PEFT, run unchanged: once with loralab in its place, once with PEFT itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).with_name("scripts")
RUNNER = Path(__file__).with_name("run_scripts.py")
Said = dict[str, Any]


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models, data and adapters."""
    folder = os.environ.get("LORALAB_ASSETS")
    if not folder:
        pytest.skip("LORALAB_ASSETS does not name the folder of real models")
    return Path(folder)


@pytest.fixture(scope="session")
def results(
    assets: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Said]]:
    """What the scripts of the selected tests say, with either library, by "ours" and "theirs"."""
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    names = sorted({spec.params["both"] for spec in specs if spec is not None and "both" in spec.params})
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    running = {}
    for whose in ("ours", "theirs"):
        folder = tmp_path_factory.mktemp(whose)
        command = [sys.executable, str(RUNNER), whose, str(folder), *(str(SCRIPTS / name) for name in names)]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        running[whose] = folder, process
    found = {}
    for whose, (folder, process) in running.items():
        _, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors[-4000:]
        found[whose] = json.loads((folder / "said.json").read_text(encoding="utf8"))
    return found


@pytest.fixture
def both(request: pytest.FixtureRequest, results: dict[str, dict[str, Said]]) -> tuple[Said, Said]:
    """What one script says with loralab, and what it says with PEFT."""
    ours, theirs = (results[whose][request.param] for whose in ("ours", "theirs"))
    assert "error" not in ours, ours["error"]
    assert "error" not in theirs, theirs["error"]
    assert (ours["library"], theirs["library"]) == ("loralab.peft", "peft")
    return ours, theirs
