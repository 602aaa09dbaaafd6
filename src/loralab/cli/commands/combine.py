"""``loralab combine``."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from loralab.cli.output import Output, Screen
from loralab.cli.writing import check_out, save_adapter
from loralab.errors import ConfigError


def command(
    *adapters: str,
    out: Path,
    weights: Annotated[list[float] | None, Parameter(consume_multiple=True, negative=())] = None,
    method: Literal[
        "exact", "concatenate", "factors", "ties", "dare", "dare_ties", "magnitude_prune"
    ] = "exact",
    r: int | None = None,
    density: float | None = None,
    seed: int = 0,
    runs: str = "runs",
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    allow_pickle: bool = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Write one adapter made of several, each with a weight; ranks, targets and scales may differ.

    The table tells how well the deltas agree (conflict: the share of numbers with opposite signs; cosine),
    and how far the result is from what the method wanted (error) and from the true weighted sum (distance).

    Parameters
    ----------
    adapters
        Adapters: folders, runs' names, or hub ids.
    out
        Folder to write; it must not exist, or be empty.
    weights
        One number for each adapter, such as 0.7 0.3; left out, the mean.
    method
        exact: the weighted sum of the deltas. concatenate: the same, factors side by side. factors: PEFT's
        "linear", which is not the sum. The others prune and mix the deltas number by number.
    r
        Rank of the result; left out, exact loses nothing.
    density
        Share of the numbers kept, for the methods that prune.
    seed
        Seed of dare's draws.
    runs
        Folder that holds the runs.
    overwrite
        Replace the folder.
    allow_pickle
        Load adapters that are pickle files.
    """
    import dataclasses

    from loralab.adapters.store import find_adapter
    from loralab.tools.combine import combine
    from loralab.tools.old_peft import read_current

    screen = Screen(output)
    check_out(out, overwrite, [Path(adapter) for adapter in adapters])
    if len(set(adapters)) < max(2, len(adapters)):
        raise ConfigError("name two or more different adapters to combine.")
    folders = {name: find_adapter(name, runs) for name in adapters}
    read = {name: read_current(folder, allow_pickle=allow_pickle) for name, folder in folders.items()}
    shares = weights or [1 / len(read)] * len(read)
    combined = combine(read, shares, method, r, density, seed)
    save_adapter(combined.adapter, out, list(folders.values()))
    layers = combined.layers
    rows = [dataclasses.asdict(layer) for layer in layers]
    screen.data({"out": str(out), "method": method, "weights": shares, "modules": rows})
    parts = " + ".join(f"{weight:g} x {name}" for name, weight in zip(adapters, shares, strict=True))
    screen.fact("adapter", f"{out} = {parts}, {method}")
    worst = max(layers, key=lambda layer: layer.distance)
    screen.fact("distance", f"{worst.distance:.2g} from the true weighted sum at most, at {worst.module}")
    screen.table(
        ("module", "r", "conflict", "cosine", "error", "distance"),
        [
            (x.module, x.rank, f"{x.conflict:.3f}", f"{x.cosine:+.3f}", f"{x.error:.2g}", f"{x.distance:.2g}")
            for x in layers
        ],
    )
