"""The adapter's card: a README.md that says what it is and how it came about."""

from loralab.core.config import LoraConfig
from loralab.data.dataset import Dataset
from loralab.training.checkpoint import Progress
from loralab.training.config import RunConfig
from loralab.training.loop import perplexity


def card(config: RunConfig, data: Dataset, progress: Progress, lora: LoraConfig) -> str:
    """Return the text of the card."""
    targets = lora.target_modules
    shown = targets if isinstance(targets, str) else ", ".join(sorted(targets or ()))
    lines = [
        "---",
        f"base_model: {config.model}",
        "library_name: peft",
        "tags: [lora, loralab]",
        "---",
        "",
        f"# {config.name}",
        "",
        f"A LoRA adapter for `{config.model}`, trained with loralab.",
        "",
        "| | |",
        "|---|---|",
        f"| rank, alpha | {lora.r}, {lora.lora_alpha:g} |",
        f"| target modules | {shown} |",
        f"| data | {config.data}: {len(data.examples)} examples, {data.trained_tokens} trained tokens |",
        f"| left out | {len(data.rejected)} rows |",
        f"| format, template | {data.format}, {data.template} |",
        f"| steps, batch | {progress.step}, {config.batch_size} |",
        f"| learning rate | {config.learning_rate:g}, {config.lr_scheduler} |",
    ]
    if progress.best_loss is not None and progress.base_loss is not None:
        for what, loss in (("base", progress.base_loss), ("adapter", progress.best_loss)):
            lines.append(f"| validation loss, {what} | {loss:.4f} (perplexity {perplexity(loss):.2f}) |")
        lines.append(f"| chosen step | {progress.best_step} |")
    return "\n".join([*lines, ""])
