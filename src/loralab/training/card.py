"""The adapter's card: a README.md that says what it is, how it came about and how to use it."""

import json
from collections.abc import Iterator, Sequence

from loralab.adapters.habits import Habits
from loralab.core.config import LoraConfig
from loralab.data.dataset import Dataset
from loralab.data.findings import Finding
from loralab.training.checkpoint import Progress
from loralab.training.config import RunConfig
from loralab.training.loop import perplexity

__all__ = ["card"]


def card(
    config: RunConfig,
    data: Dataset,
    progress: Progress,
    lora: LoraConfig,
    findings: Sequence[Finding] = (),
    habits: Habits | None = None,
) -> str:
    """Return the text of the card.

    Args:
        findings: what the checks found before the run.
        habits: what is kept beside it; the card shows the hash of the chat template.
    """
    parts = [
        _head(config),
        _use(config),
        _table("Settings", _settings(config, lora)),
        _table("Data", _data(config, data, habits or Habits())),
        _findings(findings),
        _table("Results", _results(progress)),
        "## Licence\n\nNone is set here. The licence of the base and the terms of the data decide what the "
        "adapter may be used for; write yours in place of this line.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _head(config: RunConfig) -> str:
    lines = ["---", f"base_model: {_yaml(config.model)}", "library_name: peft", "tags: [lora, loralab]"]
    lines += ["pipeline_tag: text-generation", "---", "", f"# {config.name}", ""]
    return "\n".join([*lines, f"A LoRA adapter for `{config.model}`, trained with loralab."])


def _yaml(value: str) -> str:
    return value if all(letter.isalnum() or letter in "/._-" for letter in value) else json.dumps(value)


def _use(config: RunConfig) -> str:
    return f"""## Use

With this folder named `{config.name}`:

```sh
loralab chat --model {config.model} --adapter {config.name}
loralab merge --model {config.model} --adapter {config.name} --out merged
```

```python
from loralab import PeftModel
from loralab.models import load_base

base = load_base({config.model!r})
model = PeftModel.from_pretrained(base.model, {config.name!r})
```"""


def _settings(config: RunConfig, lora: LoraConfig) -> Iterator[tuple[str, str]]:
    targets = lora.target_modules
    shown = targets if isinstance(targets, str) else ", ".join(sorted(targets or ()))
    kinds = [name for name, on in (("rsLoRA", lora.use_rslora), ("DoRA", lora.use_dora)) if on]
    yield "rank, alpha", ", ".join([str(lora.r), f"{lora.lora_alpha:g}", *kinds])
    yield "target modules", shown
    length = f"{config.epochs:g} epochs" if config.max_steps is None else f"{config.max_steps:,} steps"
    yield "length, batch", f"{length}, {config.batch_size}"
    yield "optimizer", config.optimizer
    yield "learning rate", f"{config.peak_learning_rate:g}, {config.lr_scheduler}"
    yield "seed", str(config.seed)


def _data(config: RunConfig, data: Dataset, habits: Habits) -> Iterator[tuple[str, str]]:
    yield (
        "data",
        f"{config.data}: {len(data.examples):,} examples, {data.tokens:,} tokens, "
        f"{data.trained_tokens:,} of them trained",
    )
    yield "left out", f"{len(data.rejected):,} rows"
    yield "format, template", f"{data.format}, {data.template}"
    if habits.template_sha256:
        yield "sha256 of the template", f"`{habits.template_sha256}`"
    yield "fingerprint of the data", f"`{data.fingerprint}`"


def _results(progress: Progress) -> Iterator[tuple[str, str]]:
    yield "steps", f"{progress.step:,}"
    if progress.best_loss is None or progress.base_loss is None:
        return
    for what, loss in (("base", progress.base_loss), ("adapter", progress.best_loss)):
        yield f"validation loss, {what}", f"{loss:.4f} (perplexity {perplexity(loss):.2f})"
    yield "chosen step", f"{progress.best_step:,}"


def _table(title: str, rows: Iterator[tuple[str, str]]) -> str:
    lines = (f"| {label} | {_cell(text)} |" for label, text in rows)
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    lines = [f"- {finding.severity} {finding.code}: {' '.join(finding.text.split())}" for finding in findings]
    return "\n".join(["What the checks found:", "", *lines])
