"""The loss against each swept setting, drawn with matplotlib, an optional package: import it for drawing."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from loralab.training.sweep.results import Row
from loralab.training.sweep.space import Choices, Dimension, Space, shown

__all__ = ["sweep_figure"]

_BLUE, _ORANGE = "#0072B2", "#D55E00"


def sweep_figure(space: Space, rows: Sequence[Row], title: str) -> Figure:
    """Return one panel a swept setting, one dot a trial; pruned ones are hollow, the best is a star."""
    drawn = [row for row in rows if row.loss is not None and row.state != "failed"]
    count = len(space.dimensions)
    figure = Figure(figsize=(1 + 3.2 * count, 3.6), layout="constrained")
    figure.suptitle(f"{title}: validation loss of {len(drawn)} trials")
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for axes, dimension in zip(panels, space.dimensions, strict=True):
        _panel(axes, dimension, drawn)
    panels[0].set_ylabel("validation loss")
    return figure


def _panel(axes: Axes, dimension: Dimension, rows: Sequence[Row]) -> None:
    axes.set_xlabel(dimension.name)
    axes.grid(True, axis="y", color="#DDDDDD")
    axes.set_axisbelow(True)
    if isinstance(dimension, Choices):
        # A list has no scale: 4, 8, 16 stand at equal distances, and so do words.
        axes.set_xticks(range(len(dimension.values)), [shown(value) for value in dimension.values])
        axes.set_xlim(-0.5, len(dimension.values) - 0.5)
    elif dimension.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif dimension.integer:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    best = next((row for row in rows if row.state == "finished"), None)
    for row in rows:
        value = row.values[dimension.name]
        x = dimension.values.index(value) if isinstance(dimension, Choices) else value
        look = {"marker": "*", "s": 130, "zorder": 3, "color": _ORANGE} if row is best else {"color": _BLUE}
        if row.state != "finished":
            look["facecolors"] = "none"
        axes.scatter([x], [row.loss], **look)
