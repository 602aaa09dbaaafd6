"""How it is trained: optimizer, learning rate, length, batch, regularization."""

from typing import Literal, TypeVar

from pydantic import Field

from loralab.training.settings import Section

__all__ = ["OptimizationSettings", "usual_learning_rate"]

_Self = TypeVar("_Self", bound="OptimizationSettings")


class OptimizationSettings(Section):
    """Optimizer, schedule, length, batch."""

    optimizer: Literal["adamw", "adamw-8bit", "adafactor", "sgd", "muon", "schedule-free"] = "adamw"
    """adamw; adamw-8bit (bitsandbytes) where whole modules train; adafactor; sgd; muon for A and B;
    schedule-free AdamW, which wants lr_scheduler constant."""
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Peak learning rate. Left out: by the model's width, as LoRA wants about ten times what full
    fine-tuning wants, and small models more than large ones."""
    lora_plus_ratio: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Learning rate of B, as a multiple of A's (LoRA+, arXiv:2402.12354)."""
    lr_scheduler: Literal[
        "linear",
        "cosine",
        "constant",
        "constant_with_warmup",
        "cosine_with_restarts",
        "polynomial",
        "inverse_sqrt",
        "wsd",
    ] = "cosine"
    """Course of the learning rate after the warm-up. wsd stays, and falls over the last fifth."""
    lr_cycles: int = Field(default=1, ge=1)
    """cosine_with_restarts: how many times it falls."""
    lr_power: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """polynomial: its power."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps over which the learning rate rises from 0. Left out: a twentieth of the run."""
    warmup_ratio: float | None = Field(default=None, ge=0, lt=1)
    """The same as a share of the run, in place of warmup_steps."""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """The optimizer's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Gradients are scaled down to this norm where they exceed it."""
    epochs: float = Field(default=3.0, gt=0, le=1e6, allow_inf_nan=False)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, ge=1, le=10**9)
    """Optimizer steps, in place of epochs."""
    batch_size: int = Field(default=8, ge=1)
    """Examples (rows, or blocks of text) behind one optimizer step."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Examples computed at once; divides batch_size. Less memory, the same gradient. Left out: all."""
    neftune_alpha: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Noise on the embeddings in training (NEFTune, arXiv:2310.05914), usually 5 to 15; 0 is none."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over the whole vocabulary."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the adapter's start, the order of the data and dropout."""

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate; until the base is known, what a base of usual width would get."""
        return usual_learning_rate(_USUAL_WIDTH) if self.learning_rate is None else self.learning_rate

    @property
    def micro(self) -> int:
        """Examples computed at once."""
        return self.micro_batch_size or self.batch_size

    def shared_by(self: _Self, processes: int) -> _Self:
        """Return the settings with the micro-batch that each of so many processes computes at once."""
        micro = min(self.micro, -(-self.batch_size // processes))
        return self.model_copy(update={"micro_batch_size": micro}) if processes > 1 else self


_USUAL_WIDTH = 2048


def usual_learning_rate(width: int, *, full: bool = False) -> float:
    """Return the learning rate that suits adapters on a model of this width, or all of its weights.

    Through the best ones measured at width 64 (docs/quality.md) and the usual ones at 1B to 70B, which are
    about ten times those of full fine-tuning (Schulman et al. 2025, "LoRA Without Regret").
    """
    peak, power = (5.6e-5, 1.23) if full else (5.6e-4, 5 / 6)
    return float(f"{peak * (_USUAL_WIDTH / width) ** power:.1e}")
