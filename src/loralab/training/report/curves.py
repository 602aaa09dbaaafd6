"""The curves of runs as pictures. Needs matplotlib, an optional package: import this only for drawing."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loralab.pictures import COLOURS, LOOK
from loralab.training.history import History

__all__ = ["loss_figure", "overlay_figure", "rates_figure"]

_TRAIN, _EVAL = COLOURS[0], COLOURS[1]
_MARKERS = "osD^vPX*"
_STYLES = ("-", "--", ":", "-.")
_MANY = 40
"""With more points than this a curve has no markers."""


def loss_figure(history: History, title: str) -> Figure:
    """Return the loss of the steps, faint, the smoothed one, and that of the validation data."""
    with matplotlib.rc_context(LOOK):
        figure, axes = _figure(title, "loss (nats a token)")
        steps = [event.step for event in history.steps]
        axes.plot(steps, [event.loss for event in history.steps], color=_TRAIN, alpha=0.25, linewidth=0.8)
        axes.plot(steps, history.smoothed, color=_TRAIN, linewidth=1.6, label="training, smoothed")
        points = [(event.step, event.loss) for event in history.evaluations]
        base = history.finished.base_loss if history.finished else None
        if base is not None:
            points = [(0, base), *points]
        if points:
            _plot(axes, points, "--", "o", _EVAL, "validation")
        if history.finished and history.evaluations:
            chosen = history.finished.chosen_step
            axes.axvline(chosen, color="#777777", linestyle=":", linewidth=1, label=f"chosen: step {chosen}")
        _finish(axes)
    return figure


def rates_figure(history: History, max_grad_norm: float) -> Figure:
    """Return the learning rate, and below it the norm of the gradient with the bound that it is cut to."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(7.5, 3.8), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        steps = [event.step for event in history.steps]
        upper.plot(steps, [event.learning_rate for event in history.steps], color=_TRAIN, linewidth=1.6)
        upper.set_ylabel("learning rate")
        upper.set_ylim(bottom=0)
        upper.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
        upper.grid(True, axis="y")
        norms = [event.grad_norm for event in history.steps]
        lower.plot(steps, norms, color=_TRAIN, linewidth=0.9, label="gradient norm")
        lower.axhline(max_grad_norm, color=_EVAL, linestyle="--", linewidth=1, label="max_grad_norm")
        lower.set_ylabel("gradient norm")
        lower.set_ylim(bottom=0)
        _finish(lower)
    return figure


def overlay_figure(histories: Mapping[str, History], title: str) -> Figure:
    """Return the validation losses of runs, and above them their smoothed training losses.

    Each run has a colour, a line style and a marker of its own.
    """
    with matplotlib.rc_context(LOOK):
        evaluated = any(history.evaluations for history in histories.values())
        figure = Figure(figsize=(7.5, 5.6 if evaluated else 3.4), layout="constrained")
        figure.suptitle(title, fontsize=11)
        upper, *rest = figure.subplots(2 if evaluated else 1, 1, sharex=True, squeeze=False)[:, 0]
        looks = zip(cycle(COLOURS), cycle(_STYLES), cycle(_MARKERS), strict=False)
        for (name, history), (colour, style, marker) in zip(histories.items(), looks, strict=False):
            steps = [event.step for event in history.steps]
            upper.plot(steps, history.smoothed, style, color=colour, linewidth=1.4, label=name)
            for lower in rest:
                points = [(event.step, event.loss) for event in history.evaluations]
                _plot(lower, points, style, marker, colour, name)
        upper.set_ylabel("training loss, smoothed")
        for lower in rest:
            lower.set_ylabel("validation loss")
            upper.grid(True, axis="y")
            _explain(upper)
        _finish((rest or [upper])[0])
    return figure


def _figure(title: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_ylabel(y_label)
    return figure, axes


def _plot(
    axes: Axes, points: Sequence[tuple[int, float]], style: str, marker: str, colour: str, label: str
) -> None:
    marked = marker if len(points) <= _MANY else ""
    x, y = [x for x, _ in points], [y for _, y in points]
    axes.plot(x, y, style, marker=marked, markersize=4, color=colour, linewidth=1.4, label=label)


def _finish(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.grid(True, axis="y")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _explain(axes)


def _explain(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
