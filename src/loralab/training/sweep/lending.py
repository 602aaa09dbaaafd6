"""One loaded base for trial after trial: lent to a trial's runs, and taken back as it was."""

from collections.abc import Sequence

from loralab.adapters.peft_model import PeftModel
from loralab.models import BaseModel
from loralab.training.config import RunConfig
from loralab.training.folder import RunFolder
from loralab.training.prepare import open_base
from loralab.training.run import Run
from loralab.training.starting import assemble

__all__ = ["Lender"]


class Lender:
    """Keeps the base between trials."""

    def __init__(self) -> None:
        self._base: BaseModel | None = None

    def assemble(self, wanted: Sequence[tuple[RunConfig, RunFolder]]) -> list[Run]:
        """Return the runs on the base, which is loaded if it is not yet. Raises as `assemble`."""
        base, self._base = self._base or open_base(wanted[0][0]), None
        # If this raises, a part of the runs is on the base, and it is loaded anew for the next.
        return assemble(wanted, base=base)

    def take_back(self, runs: Sequence[Run]) -> None:
        """Take what the runs trained off the base, which is then as it was when it was loaded.

        A full fine-tune leaves nothing of it, so the next trial loads it again.
        """
        model, base = runs[0].model, runs[0].base
        if not isinstance(model, PeftModel):
            return
        lora = model.base_model
        for name in list(lora.peft_config):
            # Some starts gave the base other weights, which go with their adapter.
            lora.detach(name)
        lora.unload()
        if any(getattr(module, "gradient_checkpointing", False) for module in base.model.modules()):
            # transformers has two names for it, and warns of the older one.
            newer = getattr(base.model, "activation_checkpointing_disable", None)
            (newer or base.model.gradient_checkpointing_disable)()
        base.model.eval()
        self._base = base
