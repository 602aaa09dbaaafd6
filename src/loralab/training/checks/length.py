"""How long the run is, against its warm-up, its batch and its data."""

from collections.abc import Iterator

from loralab.data.findings import Code, Finding
from loralab.training.checks import Given
from loralab.training.schedule import warmup_of

ALL_WARMUP = Code(
    "S201",
    "warning",
    "the warm-up is as long as the run: the learning rate that was set is never reached",
    "lower --warmup-steps, or train for more steps",
)
MOST_WARMUP = Code(
    "S202",
    "warning",
    "the warm-up takes more than half of the run",
    "lower --warmup-steps; a twentieth of the run is usual",
)
FEW_STEPS = Code(
    "S203",
    "warning",
    "there are fewer than 20 optimizer steps: too few to learn much",
    "raise --epochs or --max-steps, or lower --batch-size",
)
BIG_BATCH = Code(
    "S204",
    "warning",
    "batch_size is larger than the data: every step sees all of it",
    "lower --batch-size; LoRA learns well with 8 to 32",
)
MANY_EPOCHS = Code(
    "S205",
    "warning",
    "there are more than 10 passes over the data, and no validation data to see it learned by heart",
    "lower --epochs, or add --eval-split 0.1, which keeps the best step",
)
PART = Code(
    "S206",
    "note",
    "the run ends before it has seen all rows once",
    "raise --max-steps, or leave it out to train for --epochs",
)
CODES = (ALL_WARMUP, MOST_WARMUP, FEW_STEPS, BIG_BATCH, MANY_EPOCHS, PART)

_FEW = 20
_MANY = 10


def check(given: Given) -> Iterator[Finding]:
    """Count steps and passes."""
    config, steps, warmup = given.config, given.steps, warmup_of(given.config, given.steps)
    if warmup >= steps:
        yield ALL_WARMUP.found(
            f"the warm-up takes {warmup:,} steps and the run has {steps:,}: learning rate "
            f"{config.peak_learning_rate:g} is never reached"
        )
    elif warmup > steps / 2:
        yield MOST_WARMUP.found(f"the warm-up takes {warmup:,} of the run's {steps:,} steps")
    if steps < _FEW:
        yield FEW_STEPS.found(f"the run has {steps} optimizer step{'s' * (steps != 1)}")
    if config.batch_size > given.examples:
        yield BIG_BATCH.found(
            f"batch_size is {config.batch_size:,} and there are {given.examples:,} examples: every step sees "
            "all of them"
        )
    if given.epochs > _MANY and given.eval_steps is None:
        yield MANY_EPOCHS.found(
            f"{given.epochs:.3g} passes over {given.examples:,} examples, without validation data"
        )
    seen = steps * config.batch_size
    if seen < given.examples:
        yield PART.found(
            f"{steps:,} steps of {config.batch_size} see {seen:,} of {given.examples:,} examples "
            f"({100 * seen / given.examples:.3g} %)"
        )
