"""Findings of the checks on the screen."""

import sys
from collections.abc import Sequence

from rich.text import Text

from loralab.cli.output import Screen
from loralab.data.findings import Finding

__all__ = ["show_findings", "warn"]

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}


def show_findings(findings: Sequence[Finding], screen: Screen) -> None:
    """Print each finding with where it is and what to do; nothing in JSON mode."""
    for finding in findings:
        where = f"  ({', '.join(finding.where)}{_more(finding)})" if finding.where else ""
        if screen.live:
            head = Text(f"{finding.severity} {finding.code}", style=_STYLES[finding.severity])
            screen.console.print(Text.assemble(head, f"  {finding.text}", (where, "dim")))
        else:
            screen.say(f"{finding.severity} {finding.code}: {finding.text}{where}")
        screen.say(f"  {finding.fix}", style="dim")


def warn(finding: Finding | None) -> None:
    """Print one finding in one line on standard error, if there is one, beside what is piped on."""
    if finding:
        print(f"loralab: {finding.severity} {finding.code}: {finding.text}; {finding.fix}", file=sys.stderr)


def _more(finding: Finding) -> str:
    return ", ..." if finding.count > len(finding.where) else ""
