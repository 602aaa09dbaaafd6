"""Put the newest results of benchmarks/quality.py into docs/quality.md: python scripts/quality.py.

The page's own text stays; between "<!-- NAME -->" and "<!-- end -->" stands the table of that name.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "quality.md"
PICTURES = ROOT / "docs" / "pictures"
RESULTS = ROOT / "benchmarks" / "results"

Result = dict[str, Any]
LINES = {
    "full fine-tuning": ("#555555", "-"),
    "r = 8": ("#0072B2", "-"),
    "r = 8, linear layers alone": ("#0072B2", "--"),
    "r = 32": ("#D55E00", "-"),
    "r = 32, linear layers alone": ("#D55E00", "--"),
}
"""Colour and stroke by the name of what was trained; solid is the default."""
TICKS = (2e-3, 5e-3, 1e-2, 2e-2)
"""Learning rates; not all that were tried, which would stand on each other."""
RANKS = {"ranks": ("with the embeddings", "-"), "linear_ranks": ("linear layers alone", "--")}
LOOK = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.hashsalt": "loralab",
}


def newest() -> Result:
    """Return the newest results."""
    paths = sorted(RESULTS.glob("quality_*.json"), key=lambda path: path.stem.rsplit("_", 1)[1])
    if not paths:
        raise SystemExit("no results: run benchmarks/quality.py first.")
    values: Result = json.loads(paths[-1].read_text(encoding="utf8"))
    return values


def grouped(values: Result, part: str) -> Iterator[tuple[str, list[Result]]]:
    """Yield the trials of a part by their name."""
    trials = [trial for trial in values["trials"] if trial["part"] == part]
    for name in dict.fromkeys(trial["name"] for trial in trials):
        yield name, [trial for trial in trials if trial["name"] == name]


def facts(values: Result) -> list[str]:
    machine = f"{values['hardware']}, threads: {values['threads']}, torch {values['torch']}"
    commits = " and ".join(dict.fromkeys(trial["commit"] for trial in values["trials"]))
    return [f"`{values['command']}`: {machine}, commit {commits}, {values['date']}."]


def losses(part: str) -> Callable[[Result], list[str]]:
    """Return what writes the table of a part: loss and share, median and range over the seeds."""

    def table(values: Result) -> list[str]:
        header = ["", "trained numbers", "learning rate", "seeds", "validation loss", "lowest to highest"]
        lines = heading([*header, "share of full's improvement"])
        for name, trials in grouped(values, part):
            found = [trial["loss"] for trial in trials]
            share = median(trial["share"] for trial in trials)
            first = trials[0]
            cells = [name, f"{first['parameters']:,}", f"{first['learning_rate']:g}", str(len(trials))]
            spread = f"{min(found):.4f} to {max(found):.4f}" if len(found) > 1 else ""
            lines.append(line([*cells, f"{median(found):.4f}", spread, f"{share:.1%}"]))
        return lines

    return table


def rates(values: Result) -> list[str]:
    """The losses of each recipe at each learning rate."""
    lines = heading(["", "learning rate: loss"])
    for name, trials in grouped(values, "rates"):
        ordered = sorted(trials, key=lambda trial: trial["learning_rate"])
        best = min(trial["loss"] for trial in ordered)
        cells = [
            f"{trial['learning_rate']:g}: {'**' if trial['loss'] == best else ''}{trial['loss']:.4f}"
            f"{'**' if trial['loss'] == best else ''}"
            for trial in ordered
        ]
        lines.append(line([name, ", ".join(cells)]))
    return lines


def text(values: Result) -> list[str]:
    """The scores of the answers, first seed."""
    lines = heading(["", "BLEU", "NIST", "ROUGE-L"])
    for name, trials in grouped(values, "headline"):
        scored = [trial["text"] for trial in trials if "text" in trial]
        if scored:
            lines.append(line([name, *(spread(scored, key) for key in ("bleu", "nist", "rougeL"))]))
    return lines


def spread(scored: list[dict[str, float]], key: str) -> str:
    found = [scores[key] for scores in scored]
    several = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""
    return f"{median(found):.2f}{several}"


def heading(cells: list[str]) -> list[str]:
    return [line(cells), "|---" * len(cells) + "|"]


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


TABLES: dict[str, Callable[[Result], list[str]]] = {
    "facts": facts,
    "headline": losses("headline"),
    "rates": rates,
    "recipes": losses("recipes"),
    "ranks": losses("ranks"),
    "linear_ranks": losses("linear_ranks"),
    "targets": losses("targets"),
    "shakespeare": losses("shakespeare"),
    "text": text,
}


def page(old: str, values: Result) -> str:
    """Return the page with its tables made anew."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise SystemExit(f"docs/quality.md: no table {name!r}; there are {', '.join(TABLES)}.")
        return "\n".join([f"<!-- {name} -->", "", *TABLES[name](values), "", "<!-- end -->"])

    return re.sub(r"<!-- (\w+) -->.*?<!-- end -->", fill, old, flags=re.DOTALL)


def draw(values: Result, path: Path, paint: Callable[[Axes, Result], None]) -> None:
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(6.2, 3.2), layout="constrained")
        paint(figure.subplots(), values)
        figure.savefig(path, metadata={"Date": None})


def paint_ranks(axes: Axes, values: Result) -> None:
    """Share by rank."""
    ranks: set[int] = set()
    for part, (label, stroke) in RANKS.items():
        points = sorted((int(name), trials[0]["share"]) for name, trials in grouped(values, part))
        ranks.update(x for x, _ in points)
        shares = [100 * y for _, y in points]
        axes.plot([x for x, _ in points], shares, f"o{stroke}", color=LINES["r = 8"][0], label=label)
    axes.axhline(100, color="#888888", linewidth=0.8, linestyle=":")
    axes.text(min(ranks), 100, "full fine-tuning", va="bottom", color="#555555")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ranks), [str(x) for x in sorted(ranks)])
    axes.set(xlabel="rank", ylabel="% of full fine-tuning's improvement", ylim=(None, 102))
    axes.legend(loc="lower right")


def paint_rates(axes: Axes, values: Result) -> None:
    """Loss by learning rate."""
    for name, trials in grouped(values, "rates"):
        colour, stroke = LINES[name]
        points = sorted((trial["learning_rate"], trial["loss"]) for trial in trials)
        axes.plot([x for x, _ in points], [y for _, y in points], f"o{stroke}", color=colour, label=name)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set(xlabel="learning rate", ylabel="validation loss")
    axes.legend(fontsize=8)


def main() -> None:
    values = newest()
    if any(math.isnan(trial["share"]) for trial in values["trials"]):
        raise SystemExit("the results are of a run in which nothing was learned.")
    draw(values, PICTURES / "quality-ranks.svg", paint_ranks)
    draw(values, PICTURES / "quality-rates.svg", paint_rates)
    PAGE.write_text(page(PAGE.read_text(encoding="utf8"), values), encoding="utf8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
