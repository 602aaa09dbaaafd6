"""Pictures as SVG text: curves and heat maps, drawn without a plotting library."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

__all__ = ["curves", "heat_map"]

_COLOURS = ("#3b6fb6", "#d1495b", "#2e8b57", "#b8860b", "#7b5ea7", "#00798c", "#8d5524", "#5f6b6d")
_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 44, 52
_CELL_WIDTH, _CELL_HEIGHT = 74, 22
_FIFTHS = {number / 5: f"{number / 5:g}" for number in range(6)}


def curves(
    groups: Mapping[str, Sequence[Sequence[float]]],
    title: str,
    x_label: str,
    y_label: str,
    *,
    linear: bool = False,
) -> str:
    """Return a picture of curves over 1, 2, 3 ...; each group has a colour and a name.

    The vertical axis is logarithmic, and numbers that are 0 or less end their curve; a `linear` one runs
    from 0 to 1.
    """
    drawn = {
        name: [list(curve) if linear else [math.log10(v) for v in _positive(curve)] for curve in lines]
        for name, lines in groups.items()
    }
    bottom, top, ticks = (0.0, 1.0, _FIFTHS) if linear else _decades(drawn)
    longest = max([len(curve) for lines in drawn.values() for curve in lines] or [1])
    right, low = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x(rank: int) -> float:
        return _LEFT + (right - _LEFT) * (rank / max(1, longest - 1))

    def y(value: float) -> float:
        return low - (low - _TOP) * (max(value, bottom) - bottom) / (top - bottom)

    parts = [_text(_LEFT, 24, title, "title")]
    for place, label in ticks.items():
        parts.append(f'<path class="grid" d="M{_LEFT} {y(place):.1f}H{right}"/>')
        parts.append(_text(_LEFT - 8, y(place) + 4, label, "end"))
    for rank in _ticks(longest):
        parts.append(_text(x(rank - 1), low + 18, str(rank), "middle"))
    for number, (name, lines) in enumerate(drawn.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        for curve in lines:
            points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(curve) if v >= bottom)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-opacity="0.7"/>')
        height = _TOP + 12 + 18 * number
        parts.append(
            f'<path d="M{right + 16} {height - 4}h18" stroke="{colour}" stroke-width="3"/>'
            + _text(right + 40, height, name)
        )
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 12, x_label, "middle"))
    parts.append(_text(-(_TOP + low) / 2, 18, y_label, "middle", 'transform="rotate(-90)"'))
    height = max(_HEIGHT, _TOP + 30 + 18 * len(drawn))
    return _svg(_WIDTH, height, parts)


def heat_map(cells: Mapping[tuple[str, str], float], title: str, low: float = 0.0, high: float = 1.0) -> str:
    """Return a picture of numbers by (row, column), as colours between `low` and `high`; red is below 0.

    Each cell carries its number; one that is missing stays empty.
    """
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    left = 16 + 7 * max([len(row) for row in rows] or [0])
    top = 40 + 6 * max([len(column) for column in columns] or [0])
    parts = [_text(12, 24, title, "title")]
    for number, column in enumerate(columns):
        place = left + _CELL_WIDTH * (number + 0.5)
        parts.append(_text(place, top - 8, column, "", f'transform="rotate(-40 {place:.0f} {top - 8})"'))
    for number, row in enumerate(rows):
        parts.append(_text(left - 8, top + _CELL_HEIGHT * (number + 0.7), row, "end"))
    for (row, column), value in cells.items():
        x, y = left + _CELL_WIDTH * columns.index(column), top + _CELL_HEIGHT * rows.index(row)
        strength = min(1.0, abs(value) / max(abs(low), abs(high)))
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 2}" '
            f'fill="{_shade(strength, value < 0)}"/>'
            + _text(x + _CELL_WIDTH / 2, y + 15, f"{value:.2f}", "dark" if strength < 0.6 else "light")
        )
    width = left + _CELL_WIDTH * len(columns) + 60
    return _svg(max(width, 24 + 8 * len(title)), top + _CELL_HEIGHT * len(rows) + 16, parts)


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    style = (
        "text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:15px;font-weight:600}"
        ".end{text-anchor:end}.middle,.dark,.light{text-anchor:middle}.light{fill:#fff}.grid{stroke:#ddd}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}">'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, f"<style>{style}</style>", ground, *parts, "</svg>\n"])


def _text(x: float, y: float, text: str, kind: str = "", more: str = "") -> str:
    attributes = " ".join(part for part in (f'class="{kind}"' if kind else "", more) if part)
    return f'<text x="{x:.1f}" y="{y:.1f}"{" " if attributes else ""}{attributes}>{escape(text)}</text>'


def _shade(strength: float, negative: bool) -> str:
    full = (178, 40, 55) if negative else (24, 78, 140)
    return "#" + "".join(f"{round(245 + (channel - 245) * strength):02x}" for channel in full)


def _positive(curve: Sequence[float]) -> list[float]:
    end = next((i for i, v in enumerate(curve) if not v > 0), len(curve))
    return list(curve[:end])


def _decades(drawn: Mapping[str, Sequence[Sequence[float]]]) -> tuple[float, float, dict[float, str]]:
    """Return the ends of an axis for these logarithms, at most eight decades apart, and its labels."""
    values = [v for lines in drawn.values() for curve in lines for v in curve] or [0.0]
    top = math.ceil(max(values))
    bottom = max(min(math.floor(min(values)), top - 1), top - 8)
    return bottom, top, {float(power): f"{10.0**power:g}" for power in range(bottom, top + 1)}


def _ticks(longest: int) -> list[int]:
    """Return up to about eight round numbers from 1 to `longest`."""
    step = next((s * 10**p for p in range(9) for s in (1, 2, 5) if longest / (s * 10**p) <= 8), longest)
    ticks = [1, *range(step if step > 1 else 2, longest + 1, step)]
    return [one for one, two in pairwise([*ticks, longest + 2]) if two > one]
