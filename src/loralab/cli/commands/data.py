"""``loralab data``."""

from pathlib import Path

from rich.text import Text

from loralab.cli.output import Output, Screen


def command(
    file: Path,
    /,
    *,
    model: str,
    show: int = 3,
    cutoff_length: int | None = None,
    overlap_length: int = 0,
    format: str = "auto",
    template: str = "auto",
    output: Output = Output(),  # noqa: B008
) -> None:
    """Show a data file as the model will see it: which tokens are trained, what is rejected and why.

    On a terminal trained text is green and underlined; in a pipe it stands between «».

    Parameters
    ----------
    file
        Data file: .txt, .json or .jsonl.
    model
        The model whose tokenizer and template count: a folder, a hub id, or "demo".
    show
        How many examples to show.
    cutoff_length
        Longest row in tokens. Left out: 512, or the model's positions if they are fewer.
    overlap_length
        Raw text: tokens of context that a block repeats.
    format
        Format of the data: auto, text, completion, alpaca, messages, sharegpt.
    template
        Chat template: auto, plain, alpaca, chatml, vicuna.
    """
    from loralab.cli.training import describe
    from loralab.data.dataset import load_dataset
    from loralab.data.preview import preview
    from loralab.errors import ConfigError
    from loralab.models.load import load_config, load_tokenizer
    from loralab.models.positions import choose_cutoff

    if show < 0:
        raise ConfigError(f"show is {show}; expected 0 or more.")
    screen = Screen(output)
    tokenizer = load_tokenizer(model)
    data = load_dataset(
        file,
        tokenizer,
        cutoff_length=choose_cutoff(cutoff_length, load_config(model), model),
        overlap_length=overlap_length,
        format=format,
        template=template,
    )
    shown = [(example, preview(example, tokenizer)) for example in data.examples[:show]]
    screen.data(
        {
            "file": str(file),
            "format": data.format,
            "template": data.template,
            "examples": len(data.examples),
            "tokens": data.tokens,
            "trained_tokens": data.trained_tokens,
            "rejected": [{"source": r.source, "reason": r.reason} for r in data.rejected],
            "unused_columns": list(data.unused_columns),
            "shown": [
                {
                    "source": example.source,
                    "tokens": len(example.ids),
                    "trained_tokens": example.trained,
                    "pieces": [{"text": p.text, "trained": p.trained, "special": p.special} for p in pieces],
                }
                for example, pieces in shown
            ],
        }
    )
    screen.fact("data", describe(data, str(file)))
    for row in data.rejected[:10]:
        screen.say(f"  rejected {row.source}: {row.reason}")
    if len(data.rejected) > 10:
        screen.say(f"  ... and {len(data.rejected) - 10} more")
    for example, pieces in shown:
        screen.say()
        screen.say(f"{example.source}  {len(example.ids)} tokens, {example.trained} trained", style="dim")
        if screen.live:
            screen.console.print(Text.assemble(*((p.text, _style(p.trained, p.special)) for p in pieces)))
        else:
            screen.say("".join(f"«{p.text}»" if p.trained else p.text for p in pieces))


def _style(trained: bool, special: bool) -> str:
    return " ".join(
        word for word, wanted in (("green underline", trained), ("dim italic", special)) if wanted
    )
