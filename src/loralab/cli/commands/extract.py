"""``loralab extract``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from loralab.cli.output import Output, Screen
from loralab.cli.writing import check_out, save_adapter


def command(
    *,
    base: str,
    tuned: str,
    out: Path,
    r: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    include_embeddings: Annotated[bool, Parameter(negative=())] = False,
    save_rest: Annotated[bool, Parameter(negative=())] = False,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Make an adapter out of a fully fine-tuned model: the low-rank part of what training changed.

    Give exactly one of --r, --energy and --error. Files are read piece by piece; no model is loaded.

    Parameters
    ----------
    base
        The model before: a folder, a hub id, or "demo".
    tuned
        The model after: a folder or a hub id.
    out
        Folder to write; it must not exist, or be empty.
    r
        Rank of every module.
    energy
        Share of each change's squared norm to keep, such as 0.95.
    error
        Relative error of each change, such as 0.1.
    include_embeddings
        Adapt embeddings and the output head too.
    save_rest
        Keep what is no matrix, such as norms and biases, in full.
    overwrite
        Replace the folder.
    """
    import dataclasses

    from loralab.core.svd import Cut
    from loralab.tools.checkpoint import find_checkpoint
    from loralab.tools.extract import extract

    screen = Screen(output)
    check_out(out, overwrite, (Path(base), Path(tuned)))
    found = extract(
        find_checkpoint(base),
        find_checkpoint(tuned),
        Cut(r, energy, error),
        include_embeddings=include_embeddings,
        save_rest=save_rest,
    )
    adapter = found.adapter
    adapter = dataclasses.replace(
        adapter, config=dataclasses.replace(adapter.config, base_model_name_or_path=base)
    )
    save_adapter(adapter, out)
    screen.data(
        {
            "out": str(out),
            "same": found.same,
            "saved": found.saved,
            "modules": [dataclasses.asdict(layer) for layer in found.layers],
            "left": [dataclasses.asdict(left) for left in found.left],
        }
    )
    screen.fact("adapter", f"{out}: {adapter.parameters:,} numbers on {len(found.layers)} modules")
    screen.fact("same", f"{found.same} tensors did not change")
    if found.saved:
        screen.fact("saved", f"{len(found.saved)} tensors in full, first {found.saved[0]}")
    for left in found.left[:5]:
        screen.fact("left out", f"{left.name}: {left.reason}")
    if len(found.left) > 5:
        screen.fact("left out", f"and {len(found.left) - 5} more; --json lists them all")
    screen.table(
        ("module", "kind", "in", "out", "r", "|delta|", "energy", "error", "over least"),
        [
            (
                *(x.module, x.kind, x.inputs, x.out, x.rank, f"{x.norm:.4f}"),
                *(f"{x.energy:.4f}", f"{x.error:.2g}", f"{x.excess:.3f}"),
            )
            for x in found.layers
        ],
    )
