"""Pictures of adapters, drawn with matplotlib, which is an optional package: import this only for drawing."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from loralab.core.describe import Description, place_in_grid
from loralab.files import write_file

__all__ = [
    "COLOURS",
    "LOOK",
    "adapter_figure",
    "comparison_figure",
    "curves_figure",
    "modules_figure",
    "save",
]

# Okabe and Ito's colours, which people who confuse red and green tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8A6D3B")
_STYLES = ("-", "--", ":")
LOOK = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.hashsalt": "loralab",
}
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {"Software": None}}
_MOST_NUMBERS = 600
"""Above so many cells a heat map has colours only."""


def adapter_figure(layers: Sequence[Description], title: str) -> Figure:
    """Return an adapter at a glance: its singular values, and each delta's norm and stable rank."""
    places = _places([layer.module for layer in layers])
    width, height = _size(places)
    width = max(8.5, 2 * width)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(width, 3.6 + height), layout="constrained")
        figure.suptitle(title, fontsize=12)
        top, bottom = figure.subfigures(2, 1, height_ratios=(3.6, height))
        groups: dict[str, list[Sequence[float]]] = {}
        for layer in layers:
            groups.setdefault(layer.module.rpartition(".")[2], []).append(layer.spectrum)
        _curves(top.subplots(), groups, "number of the singular value", "singular value", "log")
        left, right = bottom.subplots(1, 2)
        norms = [layer.norm or 0.0 for layer in layers]
        _heat_map(left, dict(zip(places, norms, strict=True)), "norm |BA|", (0, max([*norms, 1e-30])))
        stable = [layer.stable_rank for layer in layers]
        _heat_map(right, dict(zip(places, stable, strict=True)), "stable rank", (1, max([*stable, 2])))
    return figure


def comparison_figure(cosines: Mapping[str, float], title: str) -> Figure:
    """Return a heat map of the cosines between the deltas of two adapters, by module."""
    cells = dict(zip(_places(list(cosines)), cosines.values(), strict=True))
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=_size(list(cells)), layout="constrained")
        _heat_map(figure.subplots(), cells, title, (-1, 1))
    return figure


def modules_figure(values: Mapping[str, float], title: str) -> Figure:
    """Return a heat map of numbers of at least 0, by module."""
    cells = dict(zip(_places(list(values)), values.values(), strict=True))
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=_size(list(cells)), layout="constrained")
        _heat_map(figure.subplots(), cells, title, (0, max([*values.values(), 1e-30])))
    return figure


def curves_figure(
    groups: Mapping[str, Sequence[Sequence[float]]], title: str, x_label: str, y_label: str, scale: str
) -> Figure:
    """Return a picture of curves over 1, 2, 3 ..., see `_curves`."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(6.5, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        _curves(axes, groups, x_label, y_label, scale)
    return figure


def _curves(
    axes: Axes,
    groups: Mapping[str, Sequence[Sequence[float]]],
    x_label: str,
    y_label: str,
    scale: str,
) -> None:
    """Draw curves over 1, 2, 3 ...; each group has a colour, its curves faint and their median strong.

    On a logarithmic axis a curve ends where it is no longer above 0.
    """
    keep: Callable[[float], bool] = (lambda v: v > 0) if scale == "log" else (lambda v: v == v)
    styles = cycle((style, colour) for style in _STYLES for colour in COLOURS)
    drawn = False
    for (name, found), (style, colour) in zip(groups.items(), styles, strict=False):
        lines = [_until(line, keep) for line in found]
        lines = [line for line in lines if line]
        for line in lines:
            axes.plot(range(1, len(line) + 1), line, style, color=colour, alpha=0.22, linewidth=0.8)
        longest = max(map(len, lines), default=0)
        middle = [median(line[i] for line in lines if len(line) > i) for i in range(longest)]
        label = f"{name} ({len(found)})" if len(found) > 1 else name
        strong = {"marker": "o", "markersize": 3, "zorder": 3, "label": label}
        axes.plot(range(1, longest + 1), middle, style, color=colour, **strong)
        drawn = drawn or longest > 0
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_xlim(left=0.5)
    axes.grid(True, axis="y")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if drawn:
        axes.set_yscale(scale)
        if scale == "log":
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + (len(groups) - 1) // 16)
    else:
        axes.text(0.5, 0.5, "nothing above 0", ha="center", transform=axes.transAxes)


def _heat_map(
    axes: Axes, cells: Mapping[tuple[str, str], float], title: str, ends: tuple[float, float]
) -> None:
    """Draw numbers by (row, column) as colours; each cell carries its number, a missing one stays empty.

    `ends` are the values of the first and last colour; where they lie on both sides of 0, white is 0.
    """
    rows, columns = _names(list(cells))
    axes.set_title(title)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    colours = matplotlib.colormaps["PuOr" if ends[0] < 0 else "Blues"]
    norm = Normalize(*ends)
    axes.set(xlim=(0, max(1, len(columns))), ylim=(max(1, len(rows)), 0))
    axes.set_xticks([i + 0.5 for i in range(len(columns))], columns, rotation=45, ha="right")
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    if cells:
        numbers = [[cells.get((row, column), math.nan) for column in columns] for row in rows]
        image = axes.pcolormesh(numbers, cmap=colours, norm=norm, edgecolors="white", linewidth=1)
        if len(cells) > _MOST_NUMBERS:
            axes.figure.colorbar(image, ax=axes, aspect=50, pad=0.02)
            return
    for (row, column), value in cells.items():
        red, green, blue, _ = colours(norm(value))
        ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
        x, y = columns.index(column) + 0.5, rows.index(row) + 0.5
        axes.text(x, y, _short(value), ha="center", va="center", fontsize=7, color=ink)


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the path's ending names; the same figure gives the same bytes.

    Raises:
        CheckpointError: the file cannot be written.
    """
    ending = path.suffix.lower()
    with matplotlib.rc_context(LOOK):
        write_file(
            path,
            lambda file: figure.savefig(file, format=ending[1:], dpi=120, metadata=_UNDATED[ending]),
        )


def _places(modules: Sequence[str]) -> list[tuple[str, str]]:
    """Return a (row, column) for each module: its block, by its whole path if it must be, and its name."""
    short = [place_in_grid(module) for module in modules]
    if len(set(short)) == len(short):
        return short
    return [
        (module.removesuffix(name).removesuffix("."), name)
        for module, (_, name) in zip(modules, short, strict=True)
    ]


def _names(places: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Return the names of the rows and columns of a heat map."""
    return list(dict.fromkeys(row for row, _ in places)), list(dict.fromkeys(name for _, name in places))


def _size(places: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """Return the width and height of a heat map, in inches."""
    rows, columns = _names(places)
    letters = [max(map(len, names), default=0) for names in (rows, columns)]
    return max(4.2, 0.5 * len(columns) + 0.08 * letters[0] + 0.6), 0.28 * len(rows) + 0.055 * letters[1] + 0.6


def _short(value: float) -> str:
    if abs(value) >= 9999.5:
        return f"{value:.1e}"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _until(line: Sequence[float], keep: Callable[[float], bool]) -> Sequence[float]:
    end = next((i for i, value in enumerate(line) if not keep(value)), len(line))
    return line[:end]
