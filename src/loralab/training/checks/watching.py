"""Evaluations, checkpoints and early ends that never come."""

from collections.abc import Iterator

from loralab.data.findings import Code, Finding
from loralab.training.checks import Given

AT_THE_END = Code(
    "S221",
    "warning",
    "the only evaluation is the one at the end, so there is no better step to choose",
    "lower --eval-steps, or leave it out for ten evaluations",
)
NEVER_EARLY = Code(
    "S222",
    "warning",
    "early_stopping has no effect: the run ends before so many evaluations are made",
    "lower --early-stopping or --eval-steps",
)
NOT_SAVED = Code(
    "S223",
    "note",
    "no checkpoint is saved before the end: a run that is killed begins anew",
    "lower --save-steps",
)
CODES = (AT_THE_END, NEVER_EARLY, NOT_SAVED)


def check(given: Given) -> Iterator[Finding]:
    """Compare intervals with the run's length."""
    patience, steps = given.config.early_stopping, given.steps
    if given.eval_steps is not None:
        if given.eval_steps >= steps > 1:
            yield AT_THE_END.found(f"eval_steps is {given.eval_steps:,} and the run has {steps:,} steps")
        elif patience and patience * given.eval_steps >= steps:
            yield NEVER_EARLY.found(
                f"early_stopping waits for {patience} evaluations, one every {given.eval_steps:,} steps, "
                f"and the run has {steps:,} steps"
            )
    if given.save_steps is not None and given.save_steps >= steps > 1:
        yield NOT_SAVED.found(f"save_steps is {given.save_steps:,} and the run has {steps:,} steps")
