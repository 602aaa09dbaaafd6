"""Hold what `loralab plan` says against what happens: python benchmarks/planning.py [--only CASE].

Each case is planned and then trained, each in a process of its own. Time is from where the run begins, with
its base loaded, to its last event: steps, evaluations, and what is measured for the report. Memory is the
most that the process had resident. The error of a forecast is forecast / measured - 1.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import arguments, report

from loralab.models.demo import BASE, EVAL, TRAIN
from models import assets, grown

Table = dict[str, dict[str, float]]
"""By case: what was forecast and measured of seconds and MiB."""


def cases(*, quick: bool) -> dict[str, list[str]]:
    """Return the settings of each case, as flags."""
    demo = ["--model", str(BASE), "--data", str(TRAIN), "--eval-data", str(EVAL)]
    if quick:
        return {"demo": [*demo, "--max-steps", "6", "--eval-steps", "3"]}
    found = {"demo": [*demo, "--max-steps", "100"]}
    where = assets()
    if where is None:
        return found
    e2e = ["--data", str(where / "data/e2e/train_2k.jsonl")]
    held_out = ["--eval-data", str(where / "data/e2e/valid_500.jsonl")]
    small = ["--model", str(where / "models/stories260K"), *e2e, *held_out]
    large = ["--model", str(grown("85M")), *e2e, "--batch-size", "8", "--save-steps", "10"]
    small += ["--batch-size", "16", "--max-steps", "60", "--eval-steps", "30"]
    return {
        **found,
        "260K": small,
        "260K-dropout-DoRA": [*small, "--lora-dropout", "0.05", "--use-dora"],
        "85M": [*large, "--max-steps", "12"],
        "85M-micro-batch-2": [*large, "--micro-batch-size", "2", "--max-steps", "12"],
        "85M-recomputed": [*large, "--activation-checkpointing", "--max-steps", "12"],
    }


def measure(flags: list[str]) -> dict[str, float]:
    """Plan and train a case."""
    with tempfile.TemporaryDirectory() as folder:
        common = [*flags, "--runs", folder, "--name", "run", "--json"]
        planned = loralab("plan", *common)[0]["probe"]
        loralab("train", *common)
        began = json.loads((Path(folder) / "run" / "run.json").read_text())["started"]
        last = json.loads((Path(folder) / "run" / "events.jsonl").read_text().splitlines()[-1])
    took = last["time"] - began
    peak = last["peak_memory"]
    return {
        "seconds": took,
        "seconds forecast": planned["seconds"],
        "seconds off": planned["seconds"] / took - 1,
        "peak": peak / 2**20,
        "peak forecast": planned["peak_memory"] / 2**20,
        "peak off": planned["peak_memory"] / peak - 1,
    }


def loralab(*words: str) -> list[Any]:
    command = [sys.executable, "-m", "loralab.cli", *words]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(words)}: {run.stderr.strip()}")
    return [json.loads(line) for line in run.stdout.splitlines()]


def main() -> None:
    names = list(cases(quick=False)) if assets() else ["demo"]
    flags = arguments("Hold what `loralab plan` says against what happens.", names)
    table: Table = {}
    for name, settings in cases(quick=flags.quick).items():
        if flags.only in (None, name):
            row = table[name] = measure(settings)
            if not flags.json:
                print(
                    f"{name:20} {row['seconds']:7.1f} s, forecast {row['seconds off']:+.0%}   "
                    f"{row['peak']:7.0f} MiB, forecast {row['peak off']:+.0%}",
                    flush=True,
                )
    report("planning", {"tables": {"forecast": table}}, flags)


if __name__ == "__main__":
    main()
