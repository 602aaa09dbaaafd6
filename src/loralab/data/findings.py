"""What a check says: a code, how bad it is, one line, and what to do about it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Code", "Finding", "Severity", "as_json", "refusals", "sort"]

Severity = Literal["error", "warning", "note"]

_ORDER = ("error", "warning", "note")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found."""

    code: str
    severity: Severity
    """error: a run is refused; warning: it is likely not what was meant; note: good to know."""
    text: str
    """What was found, in one line."""
    fix: str
    """What to do about it, in one line."""
    count: int = 0
    """How many rows it is about, where it is about rows."""
    where: tuple[str, ...] = ()
    """The sources of the first few of them."""


@dataclass(frozen=True, slots=True)
class Code:
    """What a check can find; `docs/checks.md` lists them all."""

    code: str
    severity: Severity
    meaning: str
    fix: str

    def found(self, text: str, count: int = 0, where: Iterable[str] = (), fix: str = "") -> Finding:
        """Return a finding of this code; `fix` takes the place of the usual one where it can say more."""
        return Finding(self.code, self.severity, text, fix or self.fix, count, tuple(where)[:_SHOWN])


def sort(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings, the worst first, then by code."""
    return sorted(findings, key=lambda finding: (_ORDER.index(finding.severity), finding.code))


def refusals(findings: Iterable[Finding]) -> list[Finding]:
    """Return those with which a run is refused."""
    return [finding for finding in findings if finding.severity == "error"]


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return the findings as JSON values."""
    return [asdict(finding) for finding in findings]
