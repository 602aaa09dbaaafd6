"""Write docs/performance.md from the newest files of benchmarks/results: python scripts/performance.py."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
Table = dict[str, dict[str, Any]]
Lines = list[str]

INTRODUCTION = """# Performance

Measured against PEFT, transformers and trl by the scripts in [benchmarks](../benchmarks), on the hardware
above each table. Contestants have the same weights, data and loss; where they share a process they take
turns. Times are medians of the turns; the spread is the distance of their quartiles, and on a machine that
does other things too, differences within it mean nothing. Ratios travel better than times. A ratio is the
peer's time over loralab's, so **above 1, loralab is faster**, or over that of the case named first; where it
is something else, its column or the text says so.

`make bench` measures everything and writes this page; `make bench ARGS=--quick` only checks that it runs.
Each script's first lines say what exactly is compared. The files in `benchmarks/results` have more than this
page: every case's spread, peak and loss."""


def train_step(values: dict[str, Any]) -> Lines:
    plain, dropped = (
        ("loralab, dropout 0", "peft, dropout 0"),
        ("loralab, dropout 0.05", "peft, dropout 0.05"),
    )
    header = ["case", "loralab", "spread", "PEFT", "PEFT, dropout 0.05", "full", "over frozen"]
    lines = heading([*header, "over frozen, our loss", "over products", "loss, PEFT's"])
    for title, table in values["seconds"].items():
        ours, theirs = (table[name] for name in plain)
        row = [title, duration(ours["seconds"]), duration(ours["spread"])]
        row += [over(table, theirs, ours) for ours, theirs in (plain, dropped)]
        row += [over(table, "full fine-tuning", plain[0])]
        row += [over(table, plain[0], limit) for limit in ("frozen", "frozen, our loss", "matrix products")]
        lines.append(line([*row, f"{ours['error']:.4f}, {theirs['error']:.4f}"]))
    return lines


def over(table: Table, one: str, other: str) -> str:
    return f"{table[one]['seconds'] / table[other]['seconds']:.2f}" if {one, other} <= table.keys() else ""


def train_run(values: dict[str, Any]) -> Lines:
    lines = heading(["rows", "contestant", "seconds to the loss", "ratio", "in all", "resident", "last loss"])
    for title, table in values["tables"].items():
        for name, row in table.items():
            cells = [
                title if row is next(iter(table.values())) else "",
                name,
                f"{row['seconds']:.1f}",
                f"{row['ratio']:.2f}",
                f"{row['total']:.1f}",
            ]
            lines.append(line([*cells, f"{row['peak']:.0f} MiB", f"{row['error']:.4f}"]))
    return lines


def memory(values: dict[str, Any]) -> Lines:
    lines = heading(["case", "contestant", "peak above the weights", "of PEFT's", "weights", "loss"])
    for title, table in values["tables"].items():
        for name, row in table.items():
            loss = f"{row['error']:.4f}" if "error" in row else ""
            sizes = [f"{row['peak']:.0f} MiB", f"{row['ratio']:.2f}", f"{row['weights']:.0f} MiB"]
            case = title if row is next(iter(table.values())) else ""
            lines.append(line([case, name, *sizes, loss]))
    return lines


def races(values: dict[str, Any]) -> Lines:
    """One line a table: the first case, and how many times as long the others take."""
    lines = heading(["what", "first", "median", "the others' ratios"])
    for title, table in tables(values):
        (first, row), *rest = table.items()
        others = [f"{name} {other['ratio']:.2f}{error(other)}" for name, other in rest]
        lines.append(line([title, first + error(row), duration(row["seconds"]), "; ".join(others)]))
    return lines


def tables(values: dict[str, Any], title: str = "") -> Iterator[tuple[str, Table]]:
    """Every table in nested dictionaries, by the keys that lead to it."""
    for key, inner in values.items():
        if not isinstance(inner, dict) or not inner:
            continue
        name = f"{title}, {key}" if title else "" if key in ("seconds", "tables", "algebra") else key
        if all(isinstance(row, dict) and {"seconds", "ratio"} <= row.keys() for row in inner.values()):
            yield name or key, inner
        else:
            yield from tables(inner, name)


def error(row: dict[str, Any]) -> str:
    return f" (error {row['error']:.3g})" if "error" in row else ""


def planning(values: dict[str, Any]) -> Lines:
    lines = heading(["case", "time", "forecast", "off", "peak memory", "forecast", "off"])
    for case, row in values["tables"]["forecast"].items():
        times = [duration(row["seconds"]), duration(row["seconds forecast"]), f"{row['seconds off']:+.0%}"]
        peaks = [f"{row['peak']:.0f} MiB", f"{row['peak forecast']:.0f} MiB", f"{row['peak off']:+.0%}"]
        lines.append(line([case, *times, *peaks]))
    return lines


def serving(values: dict[str, Any]) -> Lines:
    lines = heading(["base", "case", "tokens a second", "of the base's", "spread"])
    for shape, found in values["results"].items():
        rows = [
            [name, f"{row['tokens_a_second']:.0f}", f"{row['R']:.2f}", f"{row['spread']:.2f}"]
            for name, row in found["rates"].items()
            if "tokens_a_second" in row
        ]
        base = found["rates"]["base"]["tokens_a_second"]
        for name, row in found["peft"].items():
            rate = row["tokens_a_second"]
            rows.append([f"PEFT, 8 adapters, {name}", f"{rate:.0f}", f"{rate / base:.2f}", ""])
        lines += [line([shape if not number else "", *row]) for number, row in enumerate(rows)]
    lines += [
        "",
        *heading(
            ["base", "first token: on disk", "in memory", "in a slot", "12 on 8 slots: p99 over median"]
        ),
    ]
    for shape, found in values["results"].items():
        seconds = [
            duration(found["first_token_seconds"][where]) for where in ("on disk", "in memory", "in a slot")
        ]
        lines.append(line([shape, *seconds, f"{found['more_adapters_than_slots']['ratio']:.2f}"]))
    return lines


def switching(values: dict[str, Any]) -> Lines:
    header = [
        "base",
        "modules",
        "switch, median",
        "99th percentile",
        "PEFT, merge and unmerge",
        "times as long",
    ]
    lines = heading([*header, "building, over copying", "weights that differ", "PEFT's"])
    for shape, found in values["results"].items():
        times, theirs = found["switching"], found["peft"]
        row = [
            shape,
            str(times["modules"]),
            duration(1e-6 * times["p50_us"]),
            duration(1e-6 * times["p99_us"]),
        ]
        row += [
            duration(theirs["merge_seconds"] + theirs["unmerge_seconds"]),
            f"{found['times_as_fast']:,.0f}",
        ]
        row += [f"{found['building']['ratio']:.2f}", str(found["differing_weights"])]
        lines.append(line([*row, f"{theirs['differing_weights']:,}"]))
    return lines


def duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.1f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.0f} µs"


def line(cells: Lines) -> str:
    return "| " + " | ".join(cells) + " |"


def heading(cells: Lines) -> Lines:
    return [line(cells), "|---" * len(cells) + "|"]


QUESTIONS: dict[str, tuple[str, str, Callable[[dict[str, Any]], Lines]]] = {
    "train_step": (
        "One training step",
        """\
Forward, backward and AdamW, half of the tokens trained. The columns that begin with "over" are loralab's
time over what a step could cost: a frozen model's forward pass and gradient through the activations, with
transformers' loss or ours; the products with its weights alone.""",
        train_step,
    ),
    "train_run": (
        "A whole run",
        """\
Wall clock from the command to a validation loss that all contestants reach: loralab, a script with PEFT and
transformers' `Trainer` in padded batches, and one with trl's `SFTTrainer` and packing. Each ran once, in a
process of its own, imports and loading included.""",
        train_run,
    ),
    "memory": (
        "Memory",
        """\
The most that was resident above the weights in three training steps, each contestant in a process of its own.
`of PEFT's` is the share of what PEFT takes with dropout 0.05: **below 1 is less**.""",
        memory,
    ),
    "planning": (
        "What a plan foretells",
        """\
Time and memory that `loralab plan` told after its probe, and what the run took. The time is that of the run
without loading, the memory the most that the process had resident.""",
        planning,
    ),
    "serve": (
        "Serving many adapters",
        """\
32 streams write on one base in bfloat16, with adapters of rank 16 on all linear layers: tokens a second, and
their share of the base's without any adapter. One adapter is merged while it is alone, or mixed with the
base; 8 and 32 share a batch. By a power law, some adapters are asked for often and most seldom.""",
        serving,
    ),
    "switch": (
        "Switching a model",
        """\
Showing a base with another adapter's weights, merged before, against PEFT's `merge_adapter` and
`unmerge_adapter`; and how many numbers of the base are not what they were, afterwards.""",
        switching,
    ),
    "input": ("Reading data", "From a file to batches.", races),
    "many": ("Many adapters at once", "Adapters trained together, and one after another.", races),
    "adapters": ("Adapters on a model", "What is done with adapters beside training, against PEFT.", races),
    "tools": (
        "Algebra of adapters",
        "Functions of `loralab.tools` against their peers. The script says what the errors are.",
        races,
    ),
}


def newest() -> dict[str, list[dict[str, Any]]]:
    """Return the newest results of each question and part on each hardware, by question."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: path.stem.rsplit("_", 1)[1]):
        question, hardware, _ = path.stem.rsplit("_", 2)
        found[question, hardware] = path
    results: dict[str, list[dict[str, Any]]] = {}
    for (question, _), path in sorted(found.items()):
        name, _, part = question.partition("-")
        if name == "quality":
            continue  # it has a page of its own
        if name not in QUESTIONS:
            raise SystemExit(f"{path.name}: {name!r} has no section in scripts/performance.py")
        values = json.loads(path.read_text(encoding="utf8"))
        command = f"python benchmarks/{name}.py" + (f" --only {part}" if part else "")
        results.setdefault(name, []).append({"command": command} | values)
    return results


def facts(values: dict[str, Any]) -> str:
    machine = f"{values['hardware']}, {values['cores']} cores, threads: {values['threads']}"
    versions = f"torch {values['torch']}, peft {values['peft']}, commit {values['commit']}"
    return f"`{values['command']}`: {machine}, {versions}, {values['date']}."


def page() -> str:
    """Return the whole page."""
    results = newest()
    lines = [INTRODUCTION]
    for name, (title, text, render) in QUESTIONS.items():
        if name in results:
            lines += ["", f"## {title}", "", text]
            for values in results[name]:
                lines += ["", facts(values), "", *render(values)]
    if missing := [f"`{name}`" for name in QUESTIONS if name not in results]:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf8")
    print(f"wrote {PAGE}")
