"""``report.md`` and its pictures, from the files of a run alone, at any time."""

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralab.adapters import read_adapter
from loralab.core.describe import Description, describe
from loralab.files import write_text
from loralab.training.config import RunConfig
from loralab.training.events import Sampled
from loralab.training.folder import RunFolder, RunState
from loralab.training.history import History, read_history
from loralab.training.loop import perplexity
from loralab.training.report.advice import advise, kept_rank, relative_norms
from loralab.training.report.measuring import Effect, read_effect

__all__ = ["write_report"]

_MODULES = 10
"""So many of the modules that moved most are listed."""
_ANSWERS = 6
"""So many answers to a prompt are shown."""


@dataclass(frozen=True)
class _Known:
    """All that is known of a run."""

    folder: RunFolder
    config: RunConfig
    state: RunState
    plan: dict[str, Any]
    history: History
    effect: Effect | None
    layers: tuple[Description, ...]
    pictures: Sequence[str]


def write_report(folder: RunFolder) -> Path:
    """Write ``report.md``, and its pictures into ``plots``, and return the page's path.

    Of a run that is not finished it says what there is so far. Without matplotlib there are no pictures, and
    the page says so.

    Raises:
        ConfigError, CheckpointError, AdapterError: a file of the run is missing or damaged.
        CheckpointError: the page cannot be written.
    """
    config, history, effect = folder.config(), read_history(folder.events()), read_effect(folder.path)
    has_adapter = history.finished is not None and (folder.adapter / "adapter_config.json").is_file()
    layers = describe(read_adapter(folder.adapter)) if has_adapter else ()
    pictures = _draw(folder, config, history, effect, layers)
    known = _Known(folder, config, folder.state(), folder.plan(), history, effect, layers, pictures)
    parts = (_head, _advice, _losses, _curves, _samples, _rows, _change, _facts)
    path = folder.path / "report.md"
    write_text(path, "\n".join(line for part in parts for line in part(known)) + "\n")
    return path


def _draw(
    folder: RunFolder,
    config: RunConfig,
    history: History,
    effect: Effect | None,
    layers: tuple[Description, ...],
) -> list[str]:
    """Draw what there is to draw, and return the names of the pictures."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from loralab.pictures import adapter_figure, modules_figure, save
    from loralab.training.report.curves import loss_figure, rates_figure

    figures = {}
    if history.steps:
        figures["loss"] = loss_figure(history, f"Loss of {folder.name}")
        figures["rates"] = rates_figure(history, config.max_grad_norm)
    if any(layer.spectrum for layer in layers):
        figures["adapter"] = adapter_figure(layers, f"What {folder.name} changes")
    moved = relative_norms(layers, effect.weight_norms) if effect else {}
    if moved:
        in_order = {layer.module: 100 * moved[layer.module] for layer in layers if layer.module in moved}
        figures["moved"] = modules_figure(in_order, "|change| / |weight|, in %")
    for name, figure in figures.items():
        save(figure, folder.path / "plots" / f"{name}.svg")
    return list(figures)


def _head(known: _Known) -> list[str]:
    config, state = known.config, known.state
    lines = [f"# {config.name}", ""]
    what = "All weights" if config.full else "A LoRA adapter"
    lines.append(f"{what} of `{config.model}`, trained on `{config.data}`.")
    if state.state != "finished":
        lines += [
            "",
            f"The run is {state.state} at step {state.step} of {state.steps}; this is what there is so far.",
        ]
    if known.history.steps and not known.pictures:
        lines += ["", "There are no pictures, as matplotlib is missing: `pip install 'loralab[plot]'`."]
    return [*lines, ""]


def _advice(known: _Known) -> list[str]:
    lines = advise(known.config, known.history, known.effect, known.layers)
    return ["## In short", "", *(f"- {line}" for line in lines), ""] if lines else []


def _losses(known: _Known) -> list[str]:
    finished, found = known.history.finished, known.effect
    rows = []
    if finished and finished.base_loss is not None and finished.loss is not None:
        tokens = known.history.evaluations[-1].tokens if known.history.evaluations else 0
        rows.append(_loss_row("validation data", tokens, finished.base_loss, finished.loss))
    if found and found.loss is not None:
        rows.append(_loss_row("general text", found.tokens, found.base_loss, found.loss))
    if not rows:
        return []
    result = "trained" if known.config.full else "adapter"
    text = [
        "Loss is the mean over the tokens, in nats; perplexity is exp(loss). Of the validation data the "
        "trained tokens count: of conversations the answers, and not the questions."
    ]
    if found and found.loss is not None:
        source = f"`{found.general}`" if found.general else "a page that comes with loralab"
        left = (
            f" (the first {found.tokens:,} tokens; {found.left:,} more are not looked at)"
            if found.left
            else ""
        )
        text.append(
            f"The general text is {source}{left}: what is lost there was known before and is forgotten now. "
            f"At {found.changed or 0:.1%} of its places another token is the likeliest."
        )
    titles = ("", "tokens", "base: loss", "perplexity", f"{result}: loss", "perplexity")
    return ["## Base and result", "", *_table(titles, rows), "", *text, ""]


def _loss_row(name: str, tokens: int, before: float, after: float) -> tuple[str, ...]:
    losses = [cell for loss in (before, after) for cell in (f"{loss:.4f}", f"{perplexity(loss):.2f}")]
    return (name, f"{tokens:,}", *losses)


def _curves(known: _Known) -> list[str]:
    history = known.history
    if not history.steps:
        return []
    lines = ["## Curves", ""]
    for name, text in (("loss", "The loss by step"), ("rates", "Learning rate and gradient norm by step")):
        if name in known.pictures:
            lines += [f"![{text}](plots/{name}.svg)", ""]
    smoothed = dict(zip((event.step for event in history.steps), history.smoothed, strict=True))
    rows = [
        (event.step, f"{smoothed[event.step]:.4f}" if event.step in smoothed else "", f"{event.loss:.4f}")
        for event in history.evaluations
    ]
    if rows:
        lines += [*_table(("step", "training loss, smoothed", "validation loss"), rows), ""]
    return lines


def _samples(known: _Known) -> list[str]:
    by_prompt: dict[str, list[Sampled]] = {}
    for event in known.history.samples:
        by_prompt.setdefault(event.prompt, []).append(event)
    if not by_prompt:
        return []
    lines = ["## Samples", "", "Greedy answers, so they differ by what was learned alone.", ""]
    for prompt, events in by_prompt.items():
        lines += [f"### {_inline(prompt)}", ""]
        shown = _spread(events)
        for event in shown:
            who = "base" if event.step == 0 else f"step {event.step}"
            lines.append(f"- {who}: {_inline(event.text) or '(nothing)'}")
        if len(shown) < len(events):
            lines.append(f"- ({len(events) - len(shown)} more are in events.jsonl)")
        lines.append("")
    return lines


def _rows(known: _Known) -> list[str]:
    plan = known.plan
    if not plan:
        return []
    lines = ["## Rows", ""]
    words = {
        "rows": "rows read",
        "used": "of these used",
        "cut": "of these cut at the cutoff",
        "duplicates": "that say the same as another",
        "rejected": "rows rejected",
        "examples": "examples",
        "tokens": "tokens of one pass",
        "trained_tokens": "of these trained",
    }
    rows = [(text, f"{plan[key]:,}") for key, text in words.items() if isinstance(plan.get(key), int)]
    lines += [*_table(("training data", ""), rows), ""]
    reasons = _reasons(known.folder.path / "rejected.jsonl")
    if reasons:
        table = _table(
            ("reason", "rows"), [(reason, f"{count:,}") for reason, count in reasons.most_common()]
        )
        lines += ["Rejected rows, of the validation data too, are in `rejected.jsonl`:", "", *table, ""]
    return lines


def _reasons(path: Path) -> Counter[str]:
    """Return how many rows were rejected for each reason; numbers in a reason do not tell them apart."""
    lines = path.read_text(encoding="utf8").splitlines() if path.is_file() else []
    return Counter(re.sub(r":.*", "", json.loads(line)["reason"]) for line in lines)


def _change(known: _Known) -> list[str]:
    if not known.layers:
        return []
    lines = ["## What it changes", ""]
    if "adapter" in known.pictures:
        lines += ["![Singular values, norms and stable ranks](plots/adapter.svg)", ""]
    if "moved" in known.pictures:
        lines += ["![Change beside the weight, by module](plots/moved.svg)", ""]
    moved = relative_norms(known.layers, known.effect.weight_norms) if known.effect else {}
    layers = {layer.module: layer for layer in known.layers if layer.norm is not None}
    order = [module for module in moved if module in layers] or sorted(
        layers, key=lambda module: -(layers[module].norm or 0)
    )
    rows = [
        (
            f"`{module}`",
            f"{moved[module]:.2%}" if module in moved else "",
            f"{layers[module].norm or 0:.4f}",
            f"{kept_rank(layers[module].spectrum)} of {layers[module].r}",
            f"{layers[module].stable_rank:.2f}",
        )
        for module in order[:_MODULES]
    ]
    titles = ("module", "|change| / |weight|", "|change|", "directions for 99 %", "stable rank")
    if len(order) > _MODULES:
        lines += [f"The {_MODULES} of {len(order)} modules that moved most:", ""]
    lines += [*_table(titles, rows), ""]
    dora = " Of a DoRA adapter this is B A alone, without its magnitudes." if known.config.use_dora else ""
    lines += [
        "|change| is the Frobenius norm of scaling * B A. The directions are its singular vectors: so many "
        "hold 99 % of the sum of their squares. Stable rank is |D|_F^2 / |D|_2^2. A module that moved much "
        "is not one that matters much: the effect depends on what goes through it." + dora,
        "",
    ]
    return lines


def _facts(known: _Known) -> list[str]:
    finished, plan, config = known.history.finished, known.plan, known.config
    rows = [("base", f"`{config.model}`")]
    if "trainable_parameters" in plan:
        share = plan["trainable_parameters"] / plan["parameters"]
        rows.append(("trained parameters", f"{plan['trainable_parameters']:,} ({share:.2%})"))
    if finished:
        rows += [
            ("steps", f"{finished.step}, the result is that of step {finished.chosen_step}"),
            ("time", f"{finished.seconds:.0f} s of training"),
            ("peak memory", f"{finished.peak_memory / 1e9:.2f} GB"),
            ("result", f"`{finished.path}`"),
        ]
    rows.append(("settings", "[config.toml](config.toml)"))
    return ["## The run", "", *(f"- {name}: {value}" for name, value in rows)]


def _spread(events: list[Sampled]) -> list[Sampled]:
    """Return at most so many of the events, the first and the last among them."""
    if len(events) <= _ANSWERS:
        return events
    places = [round(i * (len(events) - 1) / (_ANSWERS - 1)) for i in range(_ANSWERS)]
    return [events[place] for place in places]


def _table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return ["| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines]


def _inline(text: str) -> str:
    """Return a text as one line in which Markdown finds nothing to do."""
    return re.sub(r"([\\`*_#<>\[\]|~])", r"\\\1", " ".join(text.split()))
