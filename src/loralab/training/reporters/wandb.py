"""Weights & Biases: offline in the run's folder, or online where an API key or WANDB_MODE says so."""

import os
import secrets
from pathlib import Path
from typing import Any

from loralab.files import write_text
from loralab.training.config import RunConfig
from loralab.training.events import Event, Finished, Sampled
from loralab.training.folder import RunFolder
from loralab.training.history import read_history
from loralab.training.reporters import numbers

NEEDS = "wandb>=0.21"


class Reporter:
    """Logs numbers by step, samples as a table that grows, and the result as the run's summary."""

    def __init__(self, folder: RunFolder, config: RunConfig) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or (
            "online" if os.environ.get("WANDB_API_KEY") else "offline"
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "loralab"),
            name=folder.name,
            id=_id_of(folder.path / "wandb" / "id"),
            dir=str(folder.path),
            config=config.model_dump(exclude_none=True),
            mode=mode,
            resume="allow" if mode == "online" else None,
            # Runs that train together are runs of one process.
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        before = read_history(folder.events()).samples
        self._samples: list[list[object]] = [[event.step, event.prompt, event.text] for event in before]
        self._unsent = False

    def add(self, event: Event) -> None:
        """Log what happened."""
        if isinstance(event, Sampled):
            self._samples.append([event.step, event.prompt, event.text])
            self._unsent = True
            return
        self._run.log(numbers(event) | self._table(), step=event.step)
        if isinstance(event, Finished):
            self._run.summary.update(
                {"chosen_step": event.chosen_step, "base_eval_loss": event.base_loss, "eval_loss": event.loss}
            )

    def close(self) -> None:
        """Send or write what is left."""
        self._run.log(self._table())
        self._run.finish()

    def _table(self) -> dict[str, Any]:
        """Return the samples as a table, all of them together, if there are new ones."""
        import wandb

        if not self._unsent:
            return {}
        self._unsent = False
        return {"samples": wandb.Table(columns=["step", "prompt", "text"], data=self._samples)}


def _id_of(path: Path) -> str:
    """Return the run's id at Weights & Biases, the same whenever the run goes on."""
    if not path.is_file():
        write_text(path, secrets.token_hex(8))
    return path.read_text(encoding="utf8")
