"""Pictures hold every number, for any numbers, and the same adapter gives the same bytes."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from loralab.core.adapter import Adapter
from loralab.core.describe import Description, describe
from loralab.tools.compare import Comparison, compare

pytest.importorskip("matplotlib", reason="drawing needs matplotlib, which is in the extra 'plot'")

from matplotlib.figure import Figure

from loralab.pictures import adapter_figure, comparison_figure, curves_figure, save

MakeAdapter = Callable[..., Adapter]


def words(figure: Figure) -> set[str]:
    """Everything that is written in a figure."""
    axes = [*figure.axes, *(one for part in figure.subfigs for one in part.axes)]
    found = {text.get_text() for one in axes for text in one.texts}
    found |= {label.get_text() for one in axes for label in (*one.get_xticklabels(), *one.get_yticklabels())}
    legends = [one.get_legend() for one in axes if one.get_legend()]
    return found | {text.get_text() for legend in legends for text in legend.get_texts()}


def cosines(found: Comparison) -> dict[str, float]:
    """The cosine of each module."""
    return {layer.module: layer.cosine for layer in found.layers}


def test_an_adapter_at_a_glance(make_adapter: MakeAdapter) -> None:
    layers = describe(make_adapter())
    figure = adapter_figure(layers, "some adapter")
    found = words(figure)
    assert {f"{layer.stable_rank:.2f}" for layer in layers} <= found
    assert {"layers.0", "layers.1", "q_proj", "v_proj", "q_proj (2)"} <= found
    spectra = figure.subfigs[0].axes[0]
    drawn = [line.get_ydata().tolist() for line in spectra.lines]
    assert all(list(layer.spectrum) in drawn for layer in layers)
    assert spectra.get_yscale() == "log"


def test_blocks_of_one_name_in_two_places_are_told_apart(make_adapter: MakeAdapter) -> None:
    shapes = {f"{side}.block.{i}.q": (4, 4) for side in ("encoder", "decoder") for i in range(2)}
    found = compare(make_adapter(shapes), make_adapter(shapes, seed=1))
    assert {"encoder.block.0", "decoder.block.0", "decoder.block.1"} <= words(
        comparison_figure(cosines(found), "x")
    )


def test_a_comparison(make_adapter: MakeAdapter) -> None:
    found = compare(make_adapter(), make_adapter(seed=1))
    figure = comparison_figure(cosines(found), "one & two")
    assert figure.axes[0].get_title() == "one & two"
    assert {f"{round(layer.cosine, 2) + 0:.2f}" for layer in found.layers} <= words(figure)


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf", ".SVG"])
def test_the_same_adapter_gives_the_same_bytes(
    make_adapter: MakeAdapter, tmp_path: Path, ending: str
) -> None:
    layers = describe(make_adapter())
    for name in "ab":
        save(adapter_figure(layers, "x"), tmp_path / f"{name}{ending}")
    first = (tmp_path / f"a{ending}").read_bytes()
    assert first == (tmp_path / f"b{ending}").read_bytes()
    assert first.startswith({".png": b"\x89PNG", ".pdf": b"%PDF"}.get(ending, b"<?xml"))
    if ending == ".svg":
        ElementTree.fromstring(first)


@pytest.mark.parametrize(
    "values", [(), (0.0, 0.0), (1.0,), (1e-30, 1e-31), (5.0, 0.5, 0.0), (float("nan"),), (1e30, 1e-30)]
)
@pytest.mark.parametrize("scale", ["log", "linear"])
def test_odd_numbers_make_a_picture_too(values: tuple[float, ...], scale: str, tmp_path: Path) -> None:
    save(curves_figure({"x": [values], "none": []}, "t", "x", "y", scale), tmp_path / "c.png")
    norm = values[0] if values else None
    layer = Description("w", 4, 3, 2, 1.0, norm, values, 1.0, 1.0)
    save(adapter_figure([layer], "t"), tmp_path / "a.png")
    save(adapter_figure([], "nothing"), tmp_path / "e.png")


def test_more_cells_than_can_be_read_have_colours_and_a_scale(tmp_path: Path) -> None:
    layers = [
        Description(f"m.layers.{i}.{name}", 4, 3, 2, 1.0, float(i), (1.0,), 1.0, 1.0)
        for i in range(120)
        for name in ("a", "b", "c", "d", "e", "f")
    ]
    figure = adapter_figure(layers, "large")
    assert not figure.subfigs[1].axes[0].texts
    assert len(figure.subfigs[1].axes) == 4
    save(figure, tmp_path / "large.png")
