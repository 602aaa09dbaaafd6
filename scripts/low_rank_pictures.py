"""Draw the pictures of docs/low-rank.md: python scripts/low_rank_pictures.py ADAPTER [FOLDER]."""

import sys
from pathlib import Path

import torch

from loralab.adapters import read_adapter
from loralab.core.svd import product_svd
from loralab.tools.describe import describe, place_in_grid, plot_spectra
from loralab.tools.picture import curves, heat_map

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"


def errors(spectrum: list[float]) -> list[float]:
    """The relative error of a delta cut to rank 1, 2, ...; 0 at the last."""
    squares = torch.tensor(spectrum, dtype=torch.float64).square()
    return [float((squares[r:].sum() / squares.sum()).sqrt()) for r in range(1, len(spectrum) + 1)]


def main(adapter: Path, folder: Path) -> None:
    layers = describe(read_adapter(adapter))
    generator = torch.Generator().manual_seed(0)
    noise = []
    for layer in layers:
        a_RI = torch.randn(layer.r, layer.inputs, generator=generator)
        b_OR = torch.randn(layer.out, layer.r, generator=generator)
        noise.append(errors(product_svd(a_RI, b_OR).s_R.tolist()))
    stable = {place_in_grid(layer.module): layer.stable_rank for layer in layers}
    trained = [errors(list(layer.spectrum)) for layer in layers]
    title = "Relative error of deltas cut to a lower rank"
    pictures = {
        "spectra": plot_spectra(layers, "Singular values of a trained adapter's deltas"),
        "stable-rank": heat_map(stable, "Stable rank of a trained adapter's deltas", 0, 8),
        "error": curves({"trained": trained, "random": noise}, title, "rank", "error", linear=True),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in pictures.items():
        (folder / f"low-rank-{name}.svg").write_text(svg, encoding="utf8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else PICTURES)
