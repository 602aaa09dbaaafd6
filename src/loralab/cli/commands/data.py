"""``loralab data``."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.text import Text

from loralab.cli.output import Output, Screen
from loralab.errors import ConfigError
from loralab.training.settings.data import DataSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loralab.data.dataset import Counts, Dataset
    from loralab.data.findings import Finding
    from loralab.data.preview import Piece
    from loralab.data.types import Example
    from loralab.training.config import RunConfig

_COLUMNS = ("source", "rows", "drawn", "passages", "used", "rejected", "cut", "weight")
_BAR = 40
"""The longest bar of the histogram, in characters."""


def command(
    file: str = "",
    /,
    *,
    model: str,
    show: int = 3,
    settings: Annotated[DataSettings, Parameter(name="*")] = DataSettings(),  # noqa: B008
    output: Output = Output(),  # noqa: B008
) -> None:
    """Show data as the model will see it: what looks wrong, how long it is, which tokens are trained.

    On a terminal trained text is green and underlined; in a pipe it stands between «». Exits with 2 where
    `train` would refuse the data.

    Parameters
    ----------
    file
        The same as --data.
    model
        The model whose tokenizer and template count: a folder, a hub id, or "demo".
    show
        How many examples to show.
    """
    if show < 0:
        raise ConfigError(f"show is {show}; expected 0 or more.")
    if bool(file) is bool(settings.data):
        raise ConfigError("name the data once: loralab data FILE --model M.")

    from loralab.data.checks import check_data
    from loralab.data.findings import refusals
    from loralab.data.preview import preview
    from loralab.data.sampling import first_conversations
    from loralab.models.load import load_config, load_tokenizer
    from loralab.models.positions import choose_cutoff
    from loralab.training.config import check
    from loralab.training.data import load_both

    tokenizer = load_tokenizer(model)
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    cutoff = choose_cutoff(settings.cutoff_length, load_config(model), model)
    config = check(given | {"data": file or settings.data, "model": model, "cutoff_length": cutoff})
    data, eval_data = load_both(config, tokenizer)
    known = first_conversations(config.data, config.reading(cutoff), data.format)
    findings = check_data(data, tokenizer, eval_data, known)
    shown = [(example, preview(example, tokenizer)) for example in data.examples[:show]]
    _show(config, (data, eval_data), findings, shown, Screen(output))
    if refusals(findings):
        raise SystemExit(2)


def _show(
    config: "RunConfig",
    loaded: "tuple[Dataset, Dataset | None]",
    findings: "Sequence[Finding]",
    shown: "Sequence[tuple[Example, Sequence[Piece]]]",
    screen: Screen,
) -> None:
    from loralab.cli.findings import show_findings
    from loralab.cli.training import describe
    from loralab.data.findings import as_json

    data, eval_data = loaded
    screen.data(
        {
            "data": config.data,
            "findings": as_json(findings),
            **_facts(data),
            "eval_data": _facts(eval_data) if eval_data else None,
            "shown": [_as_json(example, pieces) for example, pieces in shown],
        }
    )
    screen.fact("data", describe(data, config.data))
    if eval_data:
        screen.fact("eval data", describe(eval_data, config.eval_data or f"{config.eval_split:g} of it"))
    if len(data.counts) > 1:
        screen.table(_COLUMNS, [_row(counts) for counts in data.counts])
    show_findings(findings, screen)
    _show_lengths(data, screen)
    _show_rejected(data, screen)
    for example, pieces in shown:
        _show_example(example, pieces, screen)


def _facts(data: "Dataset") -> dict[str, Any]:
    from loralab.data.lengths import fill, histogram
    from loralab.training.settings.optimization import OptimizationSettings

    lengths = data.examples.lengths
    return {
        "format": data.format,
        "template": data.template,
        "examples": len(data.examples),
        "tokens": data.tokens,
        "trained_tokens": data.trained_tokens,
        "shortest": min(lengths),
        "longest": max(lengths),
        "lengths": [{"from": low, "to": high, "examples": count} for low, high, count in histogram(lengths)],
        "fill": asdict(fill(lengths, OptimizationSettings().micro)),
        "sources": [asdict(counts) for counts in data.counts],
        "duplicates": data.duplicates,
        "unused_columns": list(data.unused_columns),
        "rejected": [{"source": r.source, "reason": r.reason} for r in data.rejected],
    }


def _row(counts: "Counts") -> tuple[str, ...]:
    numbers = (counts.rows, counts.drawn, counts.passages, counts.used, counts.rejected, counts.cut)
    return (counts.name, *(f"{number:,}" for number in numbers), f"{counts.weight:g}")


def _show_lengths(data: "Dataset", screen: Screen) -> None:
    facts = _facts(data)
    bars = facts["lengths"]
    most = max(bar["examples"] for bar in bars)
    mark = "█" if screen.live else "#"
    width = len(f"{bars[-1]['to']:,}")
    screen.say()
    mean, trained = data.tokens / len(data.examples), data.trained_tokens / data.tokens
    span = f"{facts['shortest']:,} to {facts['longest']:,} tokens, {mean:.0f} on average"
    screen.fact("lengths", f"{span}; {trained:.1%} trained")
    for bar in bars:
        drawn = mark * -(-bar["examples"] * _BAR // most)
        screen.say(f"  {bar['from']:>{width},}-{bar['to']:<{width},}  {drawn} {bar['examples']:,}")
    packed, alone = (f"{facts['fill'][how]:.0%}" for how in ("packed", "rows"))
    screen.fact(
        "fill", f"{packed} of a batch is tokens when examples share rows, {alone} in rows of their own"
    )


def _show_rejected(data: "Dataset", screen: Screen) -> None:
    if data.rejected:
        screen.say()
    for row in data.rejected[:10]:
        screen.say(f"  rejected {row.source}: {row.reason}")
    if len(data.rejected) > 10:
        screen.say(f"  ... and {len(data.rejected) - 10:,} more")


def _show_example(example: "Example", pieces: "Sequence[Piece]", screen: Screen) -> None:
    screen.say()
    screen.say(f"{example.source}  {len(example.ids)} tokens, {example.trained} trained", style="dim")
    if screen.live:
        screen.console.print(Text.assemble(*((p.text, _style(p.trained, p.special)) for p in pieces)))
    else:
        screen.say("".join(f"«{p.text}»" if p.trained else p.text for p in pieces))


def _as_json(example: "Example", pieces: "Sequence[Piece]") -> dict[str, Any]:
    return {
        "source": example.source,
        "tokens": len(example.ids),
        "trained_tokens": example.trained,
        "pieces": [{"text": p.text, "trained": p.trained, "special": p.special} for p in pieces],
    }


def _style(trained: bool, special: bool) -> str:
    return " ".join(
        word for word, wanted in (("green underline", trained), ("dim italic", special)) if wanted
    )
