"""What a training run says as it goes: the loop yields these, everything else reads them."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened at an optimizer step (0 is before the first)."""

    step: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with the event's kind under "event"."""
        return {"event": type(self).__name__.lower(), **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Started(Event):
    """The run begins, or goes on from a checkpoint."""

    steps: int
    """Optimizer steps in all."""
    examples: int
    trainable: int
    """Trainable parameters."""
    parameters: int
    """All parameters."""
    isolation: str
    """How packed examples are kept apart: "positions", "mask" or "rows"."""


@dataclass(frozen=True)
class Stepped(Event):
    """One optimizer step is done."""

    loss: float
    """Mean loss over the batch's trained tokens, in nats."""
    learning_rate: float
    grad_norm: float
    """Norm of the gradient before it was clipped."""
    tokens: int
    """Tokens in this step's batch, padding not counted."""
    seconds: float
    """Wall-clock time of the step."""
    epoch: float
    smoothed: float = 0.0
    """The loss, averaged over about the last ten steps."""


@dataclass(frozen=True)
class Evaluated(Event):
    """The validation data was evaluated."""

    loss: float
    """Mean loss a trained token, in nats."""
    tokens: int
    best: bool


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint was written."""

    path: str


@dataclass(frozen=True)
class Sampled(Event):
    """A prompt was answered, greedily; at step 0 by the base alone."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Noted(Event):
    """Something beside the training went wrong, and the run goes on without it."""

    note: str


@dataclass(frozen=True)
class Paused(Event):
    """The run waits, until it is told to go on; said again and again, and written down once."""


@dataclass(frozen=True)
class Interrupted(Event):
    """The run was told to stop, and has saved."""


@dataclass(frozen=True)
class Finished(Event):
    """The adapter was written."""

    path: str
    chosen_step: int
    """The step whose adapter it is: the best evaluated, or the last."""
    base_loss: float | None
    """Validation loss of the base alone."""
    loss: float | None
    """Validation loss of the adapter."""
    seconds: float
    peak_memory: int
    """Largest resident memory of the process, in bytes."""
    ended: str = "steps"
    """Why it ended: all "steps" are done, "stop_at_loss" or "early_stopping"."""


@dataclass(frozen=True)
class Failed(Event):
    """A run that is trained together with others failed, and they go on. Its ``run.json`` says so too."""

    note: str
    """Why."""
