"""Draw the pictures of docs/low-rank.md: python scripts/low_rank_pictures.py ADAPTER [FOLDER]."""

import sys
from pathlib import Path

import torch

from loralab.adapters import read_adapter
from loralab.core.describe import describe
from loralab.core.svd import product_svd
from loralab.pictures import adapter_figure, curves_figure, save

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
    trained = [errors(list(layer.spectrum)) for layer in layers]
    title = "Deltas cut to a lower rank"
    cut = curves_figure({"trained": trained, "random": noise}, title, "rank", "relative error", "linear")
    folder.mkdir(parents=True, exist_ok=True)
    save(adapter_figure(layers, "The deltas of a trained adapter"), folder / "low-rank-adapter.png")
    save(cut, folder / "low-rank-error.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else PICTURES)
