"""What is looked at and kept along the way, and when a run ends early."""

from pydantic import Field

from loralab.training.settings import Section


class WatchingSettings(Section):
    """Evaluation, checkpoints, samples, reports, early ends."""

    eval_steps: int | None = Field(default=None, ge=1)
    """Evaluate every so many steps. Left out: a tenth of the run."""
    save_steps: int | None = Field(default=None, ge=1)
    """Save a checkpoint every so many steps. Left out: as eval_steps."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints to keep; the best one is kept besides."""
    keep_best: bool = True
    """The adapter is that of the best evaluation; without it, that of the last step."""
    stop_at_loss: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """End once the smoothed loss of the steps is no higher."""
    early_stopping: int | None = Field(default=None, ge=1)
    """End after so many evaluations without a better one."""
    sample_prompts: str | None = None
    """Prompts to answer along the way: a file with one a line, or a .json list."""
    sample_steps: int | None = Field(default=None, ge=1)
    """Answer them every so many steps. Left out: as eval_steps."""
    general_data: str | None = None
    """General text that the report measures forgetting on. Left out: a page that comes with loralab."""
    report_to: str = ""
    """Also send the course to these, with commas between: csv, tensorboard, wandb, trackio."""
