"""Run scripts one after the other, each in a folder of its own, and write down what each says last.

Arguments: "ours" or "theirs", an empty folder, the scripts. One process, because the imports take longest.
"""

import contextlib
import importlib
import io
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any


def run(script: Path, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    os.chdir(folder)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(str(script), run_name="__main__")
    except Exception:
        return {"error": traceback.format_exc()}
    said: dict[str, Any] = json.loads(out.getvalue().splitlines()[-1])
    return said


def main(whose: str, folder: Path, scripts: list[Path]) -> None:
    if whose == "ours":
        importlib.import_module("loralab.peft").install()
    results = {script.name: run(script, folder / script.stem) for script in scripts}
    (folder / "said.json").write_text(json.dumps(results), encoding="utf8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
