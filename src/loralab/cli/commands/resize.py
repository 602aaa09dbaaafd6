"""``loralab resize``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from loralab.cli.output import Output, Screen, size
from loralab.cli.writing import check_out, save_adapter


def command(
    adapter: str,
    /,
    *,
    out: Path,
    r: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    max_bytes: int | None = None,
    runs: str = "runs",
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    allow_pickle: bool = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Write an adapter at other ranks, each delta the best that its rank can hold.

    Give exactly one of --r, --energy, --error and --max-bytes. Of a DoRA adapter the product B A is resized
    and the magnitudes are kept; energy and error are those of B A.

    Parameters
    ----------
    adapter
        Adapter: a folder, a run's name, or a hub id.
    out
        Folder to write; it must not exist, or be empty.
    r
        Rank of every module; one that has less keeps it.
    energy
        Share of each delta's squared norm to keep, such as 0.95.
    error
        Relative error of each delta, such as 0.1.
    max_bytes
        Bytes of all tensors together, spent where they keep the most.
    runs
        Folder that holds the runs.
    overwrite
        Replace the folder.
    allow_pickle
        Load an adapter that is a pickle file.
    """
    import dataclasses

    from loralab.adapters.store import find_adapter
    from loralab.tools.old_peft import read_current
    from loralab.tools.resize import resize

    screen = Screen(output)
    check_out(out, overwrite, (Path(adapter),))
    folder = find_adapter(adapter, runs)
    read = read_current(folder, allow_pickle=allow_pickle)
    resized = resize(read, r=r, energy=energy, error=error, max_bytes=max_bytes)
    save_adapter(resized.adapter, out, [folder])
    rows = [dataclasses.asdict(layer) for layer in resized.layers]
    sizes = {"bytes_before": resized.bytes_before, "bytes": resized.bytes}
    screen.data({"out": str(out), **sizes, "modules": rows})
    screen.fact("adapter", f"{out}, {size(resized.bytes)} (before: {size(resized.bytes_before)})")
    left = sum(not layer.rank for layer in resized.layers)
    if left:
        screen.fact("left out", f"{left} of {len(resized.layers)} modules got no rank")
    screen.table(
        ("module", "r before", "r", "energy", "error", "bytes"),
        [
            (x.module, x.rank_before, x.rank, f"{x.energy:.4f}", f"{x.error:.4f}", x.bytes)
            for x in resized.layers
        ],
    )
