"""All that is found in a run before it is trained: in its data, and in its settings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loralab.data.checks import check_data
from loralab.data.findings import Finding, refusals, sort
from loralab.errors import DataError
from loralab.training.checks import Given, check_settings

if TYPE_CHECKING:
    from loralab.training.run import Run

__all__ = ["check_run", "refuse"]


def check_run(run: "Run") -> list[Finding]:
    """Return what is found in a run's data and settings, the worst first."""
    data = check_data(run.data, run.base.tokenizer, run.eval_data)
    given = Given(
        config=run.config,
        steps=run.plan.steps,
        examples=len(run.data.examples),
        eval_steps=run.plan.eval_steps if run.eval_data else None,
        save_steps=run.plan.save_steps,
        narrowest=_narrowest(run),
        width=getattr(run.base.model.config, "hidden_size", None),
    )
    return sort([*data, *check_settings(given)])


def refuse(findings: Sequence[Finding]) -> None:
    """Refuse a run with such findings.

    Raises:
        DataError: there is an error among them.
    """
    wrong = refusals(findings)
    if wrong:
        lines = (f"{finding.code}: {finding.text}; {finding.fix}" for finding in wrong)
        raise DataError(". ".join(lines) + ".")


def _narrowest(run: "Run") -> tuple[str, int] | None:
    """Return the adapted weight with the shortest side, and that."""
    if run.adapter is None:
        return None
    sides = {
        path: min(factors.a_RI.shape[1], factors.b_OR.shape[0])
        for path, factors in run.adapter.modules().items()
    }
    return min(sides.items(), key=lambda entry: entry[1]) if sides else None
