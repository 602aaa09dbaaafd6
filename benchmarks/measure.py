"""How the benchmarks measure and report: cases take turns in one process; medians, spreads and ratios."""

import argparse
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch

RESULTS = Path(__file__).parent / "results"
Table = dict[str, dict[str, float]]
"""By case: seconds, spread (the quartiles' distance), ratio to the first case, and an error if it has one."""


def nothing() -> None:
    """The work of a case that leaves everything as it was."""


@dataclass(frozen=True)
class Case:
    """Work to be timed, which may return its error, and what makes it possible to do it again."""

    work: Callable[[], Any]
    undo: Callable[[], object] = nothing


def race(cases: Mapping[str, Case], rounds: int) -> Table:
    """Run the cases in turn, `rounds` times, after one round that does not count.

    Python's garbage collector waits meanwhile, as in `timeit`: it would charge a case for another's garbage.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    errors: dict[str, Any] = {}
    for number in range(rounds + 1):
        for name, case in cases.items():
            gc.disable()
            start = time.perf_counter()
            errors[name] = case.work()
            seconds = time.perf_counter() - start
            gc.enable()
            case.undo()
            if number:
                times[name].append(seconds)
    reference = statistics.median(times[next(iter(cases))])
    table = {}
    for name, found in times.items():
        low, median, high = statistics.quantiles(found, n=4)
        table[name] = {"seconds": median, "spread": high - low, "ratio": median / reference}
        if isinstance(errors[name], float):
            table[name]["error"] = errors[name]
    return table


def show(title: str, table: Table, error: str = "") -> None:
    """Print a table; `error` names the last column."""
    print(f"\n{title}")
    print(f"{'':24} {'median':>11} {'spread':>11} {'ratio':>8}   {error}")
    for name, row in table.items():
        last = f"{row['error']:.6f}" if "error" in row else ""
        times = f"{1e3 * row['seconds']:8.2f} ms {1e3 * row['spread']:8.2f} ms"
        print(f"{name:24} {times} {row['ratio']:8.2f}   {last}".rstrip())


def arguments(description: str) -> argparse.Namespace:
    """Return the flags of the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, seconds in all; nothing is written"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    return parser.parse_args()


def report(name: str, values: Mapping[str, Any], flags: argparse.Namespace) -> None:
    """Write a benchmark's values with what they were measured on, unless it was a quick run."""
    today = datetime.date.today().isoformat()
    facts = {
        "hardware": hardware(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peft": peft.__version__,
        "commit": commit(),
        "date": today,
    }
    text = json.dumps({**facts, **values}, indent=2) + "\n"
    if flags.json:
        print(text, end="")
    if flags.quick:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}_{hardware()}_{today}.json"
    path.write_text(text, encoding="utf8")
    if not flags.json:
        print(f"\nwritten to {path}")


def hardware() -> str:
    """A short name of the processor, fit for a file's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next(
        (line.partition(":")[2] for line in lines if line.startswith("model name")), platform.machine()
    )
    return "-".join("".join(c if c.isalnum() else " " for c in name).split()).lower()


def commit() -> str:
    """The commit that was measured."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return result.stdout.strip()
