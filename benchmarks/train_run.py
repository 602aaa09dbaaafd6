"""Time whole runs to one validation loss: python benchmarks/train_run.py [--only TASK].

loralab's command, the script that a PEFT user writes (transformers' Trainer, padded batches) and one with
trl's SFTTrainer, which packs, run one after another as processes with the same base, rows, steps and
settings. The base is stories260K grown to 85 million parameters, in bf16; all rows fit the cutoff. Seconds
are wall clock from the start of the process, imports and loading included, to the first evaluation with a
loss no worse than what the worst of them ends with, so that all get there; the error is the last loss. The
loss is the mean over the validation rows' trained tokens. trl counts a batch in packed rows: it gets as many
as hold the tokens of the others' batch. The scripts are in benchmarks/scripts.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import arguments, report

from loralab.data.dataset import Reading, load_dataset
from loralab.data.sources import read_rows
from loralab.models.demo import BASE
from loralab.models.load import load_tokenizer
from models import assets, grown

SCRIPTS = Path(__file__).parent / "scripts"
Table = dict[str, dict[str, Any]]
"""By contestant: seconds to the loss and their ratio to loralab's, in all ("total"), most MiB resident
("peak"), last loss ("error"), and each evaluation's [seconds, step, loss] ("curve")."""


@dataclass(frozen=True)
class Task:
    """Files of rows, how many of them are taken, and the template they are written in."""

    template: str
    train: str
    valid: str
    rows: int = 160
    held_out: int = 32
    steps: int = 20
    eval_steps: int = 5
    learning_rate: float = 2e-3
    batch_size: int = 8
    cutoff: int = 512


ALPACA = "instruct/alpaca_en_demo.json"
TASKS = {
    "alpaca": Task("alpaca", ALPACA, ALPACA),
    "e2e": Task("plain", "e2e/train_2k.jsonl", "e2e/valid_500.jsonl", rows=240, steps=30),
}


def made_up(folder: Path) -> Task:
    """Return a task for a quick run, with rows of its own."""
    rows = [{"instruction": f"Count to {n}.", "input": "", "output": "1 2 3 4 5 6"} for n in range(24)]
    write_rows(folder / "made_up.jsonl", rows)
    path = str(folder / "made_up.jsonl")
    return Task("alpaca", path, path, rows=16, held_out=4, steps=4, eval_steps=2)


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")


def prepare(task: Task, model: str, folder: Path) -> dict[str, Any]:
    """Write the rows that all contestants get, and return what they are told.

    Only rows that fit the cutoff are taken; those of validation are the last of their file.
    """
    tokenizer = load_tokenizer(model)
    tokens: list[int] = []
    for name, path, chosen in (
        ("train", Path(task.train), slice(task.rows)),
        ("valid", Path(task.valid), slice(-task.held_out, None)),
    ):
        path = (assets() or Path()) / "data" / path
        rows = dict(read_rows(path))
        examples = load_dataset(
            path, tokenizer, Reading(cutoff_length=task.cutoff, template=task.template)
        ).examples[chosen]
        write_rows(folder / f"{name}.jsonl", [rows[example.source] for example in examples])
        tokens = tokens or [len(example.ids) for example in examples]
    mean = sum(tokens) / len(tokens)
    return {
        **asdict(task),
        "model": model,
        "train": str(folder / "train.jsonl"),
        "valid": str(folder / "valid.jsonl"),
        "packed_rows": max(1, round(task.batch_size * mean / task.cutoff)),
        "warmup_steps": task.steps // 20,
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
    }


def loralab(settings: dict[str, Any], out: Path) -> list[str]:
    told = {
        "model": settings["model"],
        "data": settings["train"],
        "eval-data": settings["valid"],
        "template": settings["template"],
        "cutoff-length": settings["cutoff"],
        "max-steps": settings["steps"],
        "dtype": "bfloat16",
        "runs": out,
        "name": "run",
    }
    same = ("eval_steps", "batch_size", "learning_rate", "warmup_steps", "r", "lora_alpha", "lora_dropout")
    told |= {name.replace("_", "-"): settings[name] for name in same}
    flags = [part for name, value in told.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "loralab.cli", "train", *flags, "--plain"]


def script(name: str) -> Callable[[dict[str, Any], Path], list[str]]:
    def command(settings: dict[str, Any], out: Path) -> list[str]:
        path = out / "settings.json"
        path.write_text(json.dumps(settings | {"out": str(out)}), encoding="utf8")
        return [sys.executable, str(SCRIPTS / f"{name}.py"), str(path)]

    return command


CONTESTANTS = {
    "loralab": loralab,
    "peft, Trainer": script("peft_trainer"),
    "trl, packed": script("trl_packed"),
}


def run(name: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one contestant and return its curve, its seconds in all and its peak."""
    out = folder / name.replace(", ", "-")
    out.mkdir()
    command = CONTESTANTS[name](settings, out)
    environment = os.environ | {"LORALAB_CACHE": str(out / "cache")}  # no rows kept from another run
    log = out / "log.txt"
    start = time.time()
    with log.open("w", encoding="utf8") as lines:
        process = subprocess.Popen(command, stdout=lines, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    total = time.time() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} ended with {process.returncode}: {log.read_text(encoding='utf8')[-2000:]}")
    path = out / "run" / "events.jsonl" if name == "loralab" else out / "losses.jsonl"
    found = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]
    curve = [
        [line["time"] - start, line["step"], line["loss"]]
        for line in found
        if line.get("event", "evaluated") == "evaluated"
    ]
    mebibyte = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return {"total": total, "peak": usage.ru_maxrss / mebibyte, "error": curve[-1][2], "curve": curve}


def race(settings: dict[str, Any], folder: Path) -> Table:
    table = {name: run(name, settings, folder) for name in CONTESTANTS}
    target = max(row["error"] for row in table.values())
    for row in table.values():
        row["seconds"], row["steps"] = next(
            (seconds, step) for seconds, step, loss in row["curve"] if loss <= target
        )
    for row in table.values():
        row["ratio"] = row["seconds"] / table["loralab"]["seconds"]
    return table


def show(title: str, table: Table) -> None:
    target = max(row["error"] for row in table.values())
    print(f"\n{title}, to a validation loss of {target:.4f}")
    print(f"{'':16} {'to it':>9} {'ratio':>8} {'steps':>6} {'in all':>9} {'resident':>12}   last loss")
    for name, row in table.items():
        times = f"{row['seconds']:7.1f} s {row['ratio']:8.2f} {row['steps']:6d} {row['total']:7.1f} s"
        print(f"{name:16} {times} {row['peak']:8.0f} MiB   {row['error']:.4f}")


def main() -> None:
    flags = arguments("Time whole runs to one validation loss, from the command line.", list(TASKS))
    tables: dict[str, Table] = {}
    told: dict[str, Any] = {}
    for name in [flags.only] if flags.only else ["alpaca"] if flags.quick else list(TASKS):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            task = made_up(folder) if flags.quick else TASKS[name]
            settings = prepare(task, str(BASE if flags.quick else grown("85M")), folder)
            title = f"{name}, {task.rows} rows, {task.steps} steps of {task.batch_size}"
            tables[title] = race(settings, folder)
            told[name] = {k: v for k, v in settings.items() if k not in ("model", "train", "valid")}
        if not flags.json:
            show(title, tables[title])
    report("train_run", {"settings": told, "tables": tables}, flags)


if __name__ == "__main__":
    main()
