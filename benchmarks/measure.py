"""How the benchmarks measure and report: cases take turns in one process; medians, spreads, ratios, peaks."""

import argparse
import ctypes
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch

RESULTS = Path(__file__).parent / "results"
STATUS = Path("/proc/self/status")
Table = dict[str, dict[str, float]]
"""By case: seconds, spread (the quartiles' distance), ratio to the first case, peak (MiB, where the system
tells it) and an error if it has one."""


def nothing() -> None:
    """The work of a case that leaves everything as it was."""


@dataclass(frozen=True)
class Case:
    """Work to be timed, which may return its error, and what makes it possible to do it again."""

    work: Callable[[], Any]
    undo: Callable[[], object] = nothing


def race(cases: Mapping[str, Case], rounds: int, *, settle: bool = False) -> Table:
    """Run the cases in turn, `rounds` times, after one round that does not count but shows the peaks.

    With `settle` each turn is the work twice, of which the second time counts: memory and caches are then as
    the case's own work left them, and not as another's, as they are in a run of many steps. Python's garbage
    collector waits meanwhile, as in `timeit`: it would charge a case for another's garbage.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    errors: dict[str, Any] = {}
    peaks: dict[str, float | None] = {}
    for name, case in cases.items():
        peaks[name] = peak_above(case.work)
        case.undo()
    for _ in range(rounds):
        for name, case in cases.items():
            gc.disable()
            if settle:
                case.work()
                case.undo()
            start = time.perf_counter()
            errors[name] = case.work()
            seconds = time.perf_counter() - start
            gc.enable()
            case.undo()
            times[name].append(seconds)
    reference = statistics.median(times[next(iter(cases))])
    table = {}
    for name, found in times.items():
        low, median, high = statistics.quantiles(found, n=4)
        table[name] = {"seconds": median, "spread": high - low, "ratio": median / reference}
        if isinstance(errors[name], float):
            table[name]["error"] = errors[name]
        peak = peaks[name]
        if peak is not None:
            table[name]["peak"] = peak
    return table


def peak_above(work: Callable[[], Any]) -> float | None:
    """Do the work and return the MiB that were resident at most above what was there before.

    What the allocator keeps of memory that was freed is given back first. None where the system does not
    tell: it takes Linux.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, at what is resident now
    except (OSError, AttributeError):
        work()
        return None
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """Return a number of /proc/self/status in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def show(title: str, table: Table, error: str = "") -> None:
    """Print a table; `error` names the last column."""
    print(f"\n{title}")
    print(f"{'':26} {'median':>11} {'spread':>11} {'ratio':>8} {'peak':>12}   {error}")
    for name, row in table.items():
        last = f"{row['error']:.6f}" if "error" in row else ""
        times = f"{1e3 * row['seconds']:8.2f} ms {1e3 * row['spread']:8.2f} ms"
        peak = f"{row['peak']:8.1f} MiB" if "peak" in row else ""
        print(f"{name:26} {times} {row['ratio']:8.2f} {peak:>12}   {last}".rstrip())


def arguments(description: str, parts: Sequence[str] = ()) -> argparse.Namespace:
    """Return the flags of the command line; with `parts`, also --only, which names one of them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, seconds in all; nothing is written"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    if parts:
        parser.add_argument("--only", choices=parts, help="measure one part")
    return parser.parse_args()


def report(name: str, values: Mapping[str, Any], flags: argparse.Namespace) -> None:
    """Write a benchmark's values with what they were measured on, unless it was a quick run.

    A run of one part is a question of its own, and leaves the record of the whole as it is.
    """
    part = getattr(flags, "only", None)
    question = f"{name}-{part}" if part else name
    today = datetime.date.today().isoformat()
    facts = {
        "hardware": hardware(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peft": peft.__version__,
        "commit": commit(),
        "date": today,
        "command": f"python benchmarks/{name}.py" + (f" --only {part}" if part else ""),
    }
    text = json.dumps({**facts, **values}, indent=2) + "\n"
    if flags.json:
        print(text, end="")
    if flags.quick:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{question}_{hardware()}_{today}.json"
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
