"""``loralab eval``."""

import contextlib
from pathlib import Path

from loralab.cli.output import Output, Screen


def command(
    *,
    model: str,
    data: Path,
    adapter: str | None = None,
    runs: str = "runs",
    cutoff_length: int | None = None,
    format: str = "auto",
    template: str = "auto",
    micro_batch_size: int = 8,
    dtype: str = "auto",
    allow_pickle: bool = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Measure loss and perplexity on a data file: of the base, and of an adapter beside it.

    Loss is the mean over the trained tokens (answers only, for formatted data), in nats.

    Parameters
    ----------
    model
        Base model: a folder, a hub id, or "demo".
    data
        Data file: .txt, .json or .jsonl.
    adapter
        Adapter: a folder, a run's name, or a hub id.
    runs
        Folder that holds the runs.
    cutoff_length
        Longest row in tokens. Left out: 512, or the model's positions if they are fewer.
    format
        Format of the data: auto, text, completion, alpaca, messages, sharegpt.
    template
        Chat template: auto (the adapter's, else the tokenizer's own), plain, alpaca, chatml, vicuna.
    micro_batch_size
        Examples computed at once.
    dtype
        Precision of the base: auto, float32, bfloat16, float16.
    allow_pickle
        Load a base or adapter that is a pickle file.
    """
    from loralab.adapters import PeftModel
    from loralab.adapters.habits import read_habits
    from loralab.adapters.store import find_adapter
    from loralab.cli.training import describe
    from loralab.models import load_base
    from loralab.training.config import check
    from loralab.training.loop import evaluate, perplexity
    from loralab.training.prepare import causal_lm, load_data

    screen = Screen(output)
    folder = find_adapter(adapter, runs) if adapter else None
    if folder and template == "auto":
        template = read_habits(folder).template
    config = check(
        {
            "model": model,
            "data": str(data),
            "cutoff_length": cutoff_length,
            "format": format,
            "template": template,
            "micro_batch_size": micro_batch_size,
            "batch_size": micro_batch_size,
            "dtype": dtype,
        }
    )
    base = load_base(model, dtype, allow_pickle=allow_pickle)
    task = causal_lm(base)
    subject = base.model
    if folder:
        subject = PeftModel.from_pretrained(base.model, folder, allow_pickle=allow_pickle)
    rows = load_data(str(data), config, base)
    screen.fact("data", describe(rows, str(data)))
    results: dict[str, dict[str, float]] = {}

    def measure(name: str) -> None:
        loss, tokens = evaluate(subject, task, rows.examples, micro_batch_size)
        results[name] = {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens}

    with subject.disable_adapter() if folder else contextlib.nullcontext():
        measure("base")
    if folder:
        measure("adapter")
    screen.data(results)
    screen.table(
        ("", "loss", "perplexity", "tokens"),
        [(n, f"{r['loss']:.4f}", f"{r['perplexity']:.2f}", f"{r['tokens']:,}") for n, r in results.items()],
    )
