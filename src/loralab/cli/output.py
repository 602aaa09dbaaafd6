"""What the commands print: for a person at a terminal, for a pipe (--plain), for a program (--json)."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Output", "Screen", "duration", "size"]


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """How to print."""

    json: Annotated[bool, Parameter(negative=())] = False
    """Print JSON for programs."""
    plain: Annotated[bool, Parameter(negative=())] = False
    """Print plain lines, without colours or moving parts; the default in a pipe."""


class Screen:
    """Standard output in one of three modes: "rich", "plain" or "json"."""

    def __init__(self, output: Output) -> None:
        self.mode = "json" if output.json else "plain" if output.plain or not sys.stdout.isatty() else "rich"
        # A pipe has no width: lines stay whole there.
        self.console = Console(
            color_system="auto" if self.mode == "rich" else None,
            highlight=False,
            width=None if self.mode == "rich" else 10_000,
            soft_wrap=self.mode != "rich",
        )

    @property
    def live(self) -> bool:
        """Whether lines may move and be coloured."""
        return self.mode == "rich"

    def say(self, text: str = "", style: str = "") -> None:
        """Print a line for a person; nothing in JSON mode."""
        if self.mode == "plain":
            # Not through rich, which turns tabs into spaces.
            self.write(text + "\n")
        elif self.mode == "rich":
            self.console.print(Text(text, style=style))

    def fact(self, label: str, text: str) -> None:
        """Print a labelled line for a person."""
        if self.mode == "plain":
            self.say(f"{label}: {text}")
        elif self.mode == "rich":
            line = Text(f"{label:<10} ", style="bold cyan") + Text(text, style="default")
            self.console.print(line)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table for a person; tab-separated when plain, nothing in JSON mode."""
        if self.mode == "plain":
            for row in [columns, *rows]:
                self.say("\t".join(str(cell) for cell in row))
        elif self.mode == "rich":
            table = Table(box=None, header_style="bold cyan", pad_edge=False)
            for index, column in enumerate(columns):
                table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
            for row in rows:
                table.add_row(*(Text(str(cell)) for cell in row))
            self.console.print(table)

    def data(self, value: Any) -> None:
        """Print a value as one line of JSON, in JSON mode only."""
        if self.mode == "json":
            sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def write(self, text: str) -> None:
        """Print a piece of text as it comes, without a line end; nothing in JSON mode."""
        if self.mode != "json":
            sys.stdout.write(text)
            sys.stdout.flush()


def duration(seconds: float) -> str:
    """Return a length of time in words: "42 s", "3 min 5 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Return a number of bytes in words: "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
