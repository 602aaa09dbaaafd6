"""Rows of ``evaluations.csv`` on the screen."""

from collections.abc import Mapping, Sequence
from typing import Any

from loralab.cli.output import Screen
from loralab.training.evaluation.table import COLUMNS, Table

__all__ = ["show_rows", "show_table"]

_WHOLE = (
    *("date", "model", "adapter", "data", "rows", "template", "max_length", "stride", "dtype"),
    *("loss", "perplexity", "tokens"),
)
_HIDDEN = (*COLUMNS, "answers")


def show_table(table: Table, screen: Screen) -> None:
    """Print a whole table."""
    rows = table.rows()
    screen.data({"rows": rows, "table": str(table.path)})
    if not rows:
        screen.say(f"{table.path}: nothing was measured yet; loralab eval --model M --data F does.")
        return
    show_rows(rows, _WHOLE, screen, ("comment",))


def show_rows(
    rows: Sequence[Mapping[str, Any]], first: Sequence[str], screen: Screen, last: Sequence[str] = ()
) -> None:
    """Print these columns, between them those of metrics; columns that are empty in all rows are left out."""
    others = dict.fromkeys(name for row in rows for name in row if name not in _HIDDEN)
    columns = [
        name for name in (*first, *others, *last) if any(row.get(name, "") not in ("", None) for row in rows)
    ]
    screen.table(columns, [[_cell(name, row.get(name, "")) for name in columns] for row in rows])


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).partition("+")[0].replace("T", " ") if name == "date" else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if name == "loss" else f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"
