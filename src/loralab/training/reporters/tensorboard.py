"""TensorBoard's event files, in the run's folder: ``tensorboard --logdir runs`` shows all runs."""

from loralab.training.config import RunConfig
from loralab.training.events import Evaluated, Event, Sampled
from loralab.training.folder import RunFolder
from loralab.training.reporters import numbers

NEEDS = "tensorboard>=2.19"

_FLUSH_SECONDS = 10


class Reporter:
    """Writes scalars, and samples as text."""

    def __init__(self, folder: RunFolder, config: RunConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.path / "tensorboard"), flush_secs=_FLUSH_SECONDS)
        settings = "".join(f"    {line}\n" for line in config.to_toml().splitlines())
        self._writer.add_text("settings", settings, 0)

    def add(self, event: Event) -> None:
        """Write the event's numbers or text."""
        for name, value in numbers(event).items():
            self._writer.add_scalar(name, value, event.step)
        if isinstance(event, Sampled):
            self._writer.add_text(f"samples/{event.prompt[:60]}", event.text, event.step)
        if isinstance(event, Evaluated):
            self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
