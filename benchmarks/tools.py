"""Time the adapter algebra against its peers in one process: python benchmarks/tools.py [--quick] [--json].

The cases of a table take turns. Prints medians, spreads (the quartiles' distance) and errors, and writes
them to benchmarks/results.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from measure import Case, Table, arguments, race, report, show
from torch import Tensor, nn

from loralab.adapters import read_adapter, write_adapter
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.svd import exact_svd, product_svd, randomized_svd
from loralab.tools.combine import combine

Work = Callable[[], float]
"""Do the work once and return its error."""


def compare(works: Mapping[str, Work], rounds: int) -> Table:
    return race({name: Case(work) for name, work in works.items()}, rounds)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def resizing(size: int, rounds: int) -> Table:
    """Rank 64 to 16 of one delta: in factor space, and by the SVD of the delta."""
    b_OR, a_RI = torch.randn(size, 64), torch.randn(64, size)
    delta = b_OR @ a_RI
    best = torch.linalg.svdvals(delta)
    least = float(best[16:].norm() / best.norm())

    def factors() -> float:
        return product_svd(a_RI, b_OR).cut(16).error / least

    def whole() -> float:
        return exact_svd(b_OR @ a_RI).cut(16).error / least

    return compare({"factor space": factors, "full SVD": whole}, rounds)


def extraction(size: int, rounds: int) -> dict[str, Table]:
    """Rank 16 of a whole matrix, for a spectrum that falls and for noise; errors over the least possible."""
    spectra = {
        "falling": torch.randn(size, 32) @ torch.randn(32, size) + 0.3 * torch.randn(size, size),
        "noise": torch.randn(size, size),
    }
    tables = {}
    for name, matrix in spectra.items():
        least = float(torch.linalg.svdvals(matrix)[16:].norm())

        def randomized(matrix: Tensor = matrix, least: float = least) -> float:
            return randomized_svd(matrix, 16).lost / least

        def whole(matrix: Tensor = matrix, least: float = least) -> float:
            return exact_svd(matrix).cut(16).lost / least

        def library(matrix: Tensor = matrix, least: float = least) -> float:
            u, s, v = torch.svd_lowrank(matrix, q=16, niter=2)
            return float((matrix - (u * s) @ v.t()).norm()) / least

        tables[name] = compare(
            {"randomized": randomized, "full SVD": whole, "torch.svd_lowrank": library}, rounds
        )
    return tables


def combining(size: int, rounds: int) -> Table:
    """0.7 and 0.3 of two adapters of rank 16 on four layers; errors are distances from the true sum."""
    names = [f"layer{i}" for i in range(4)]

    def adapter(seed: int) -> Adapter:
        torch.manual_seed(seed)
        tensors = {}
        for name in names:
            tensors |= {
                f"{name}.lora_A.weight": torch.randn(16, size),
                f"{name}.lora_B.weight": torch.randn(size, 16),
            }
        return Adapter(LoraConfig(r=16, lora_alpha=32, target_modules=names), tensors)

    adapters = {"one": adapter(1), "two": adapter(2)}
    deltas = [{path: f.product() for path, f in a.modules().items()} for a in adapters.values()]
    true = {name: 0.7 * deltas[0][name] + 0.3 * deltas[1][name] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for name, one in adapters.items():
            write_adapter(one, Path(folder) / name)
        model = nn.ModuleDict({name: nn.Linear(size, size, bias=False) for name in names})
        theirs = peft.PeftModel.from_pretrained(model, Path(folder) / "one", adapter_name="one")
        theirs.load_adapter(Path(folder) / "two", "two")
        adapters = {name: read_adapter(Path(folder) / name) for name in adapters}

    def ours(method: str, r: int | None = None) -> Work:
        def case() -> float:
            return max(layer.distance for layer in combine(adapters, [0.7, 0.3], method, r).layers)

        return case

    def peft_s(kind: str, **settings: Any) -> Work:
        def case() -> float:
            theirs.add_weighted_adapter(["one", "two"], [0.7, 0.3], "sum", combination_type=kind, **settings)
            layers = {name: theirs.base_model.model.get_submodule(name) for name in names}
            error = max(
                relative(layer.get_delta_weight("sum").detach(), true[n]) for n, layer in layers.items()
            )
            theirs.delete_adapter("sum")
            return error

        return case

    cases = {
        "exact": ours("exact"),
        "exact, r 16": ours("exact", 16),
        "factors": ours("factors"),
        "peft svd, r 32": peft_s("svd", svd_rank=32, svd_full_matrices=False),
        "peft svd, r 16": peft_s("svd", svd_rank=16, svd_full_matrices=False),
        "peft cat": peft_s("cat"),
        "peft linear": peft_s("linear"),
    }
    return compare(cases, rounds)


def main() -> None:
    flags = arguments("Time the adapter algebra against its peers.")
    size, rounds = (256, 3) if flags.quick else (1024, 9)
    torch.manual_seed(0)
    resized, extracted, combined = resizing(size, rounds), extraction(size, rounds), combining(size, rounds)
    if not flags.json:
        show(f"resize 64 to 16, {size} x {size} (error: over the least possible)", resized, "error")
        for name, table in extracted.items():
            show(f"extract rank 16, {size} x {size}, {name} (error: over the least possible)", table, "error")
        what = "error: distance from the true sum; ours also measures conflict, cosine and error"
        show(f"combine 0.7 and 0.3, four layers {size} x {size} ({what})", combined, "error")
    values = {"size": size, "rounds": rounds, "resize": resized, "extract": extracted, "combine": combined}
    report("tools", values, flags)


if __name__ == "__main__":
    main()
