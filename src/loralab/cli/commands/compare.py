"""``loralab compare``."""

from pathlib import Path

from loralab.cli.output import Output, Screen
from loralab.cli.writing import check_picture


def command(
    one: str,
    two: str,
    /,
    *,
    plot: Path | None = None,
    runs: str = "runs",
    allow_pickle: bool = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Show how far two adapters of one base agree, module by module.

    Cosine compares the deltas. Writes and reads compare the subspaces that they write into and read from: 1
    is the same subspace; beside it stands what two random ones would have.

    Parameters
    ----------
    one
        Adapter: a folder, a run's name, or a hub id.
    two
        The other adapter.
    plot
        Write a heat map of the cosines to this file (.png, .svg or .pdf).
    runs
        Folder that holds the runs.
    allow_pickle
        Load adapters that are pickle files.
    """
    import dataclasses

    from loralab.adapters.store import find_adapter
    from loralab.tools.compare import compare
    from loralab.tools.old_peft import read_current

    screen = Screen(output)
    check_picture(plot)
    found = compare(
        *(read_current(find_adapter(name, runs), allow_pickle=allow_pickle) for name in (one, two))
    )
    screen.data(dataclasses.asdict(found))
    screen.fact("cosine", f"{found.cosine:+.4f} over all {len(found.layers)} common modules")
    screen.fact("norms", f"{found.norms[0]:.4f} and {found.norms[1]:.4f}")
    for name, alone in ((one, found.only_first), (two, found.only_second)):
        if alone:
            screen.fact("alone", f"{len(alone)} modules are adapted by {name} only, first {alone[0]}")
    magnitudes = {x.module: x.magnitude for x in found.layers if x.magnitude is not None}
    if magnitudes:
        far = max(magnitudes, key=lambda module: magnitudes[module])
        screen.fact(
            "DoRA", f"magnitudes differ by {magnitudes[far]:.2g} at most, at {far}; all else is of BA"
        )
    if plot:
        from loralab.pictures import comparison_figure, save

        cosines = {x.module: x.cosine for x in found.layers}
        save(comparison_figure(cosines, f"Cosine of {Path(one).name} and {Path(two).name}"), plot)
        screen.fact("picture", str(plot))
    screen.table(
        ("module", "|one|", "|two|", "cosine", "writes", "(chance)", "reads", "(chance)", "least angle"),
        [
            (
                *(x.module, f"{x.norms[0]:.4f}", f"{x.norms[1]:.4f}", f"{x.cosine:+.3f}"),
                *(f"{x.columns.overlap:.3f}", f"{x.columns.by_chance:.3f}"),
                *(f"{x.rows.overlap:.3f}", f"{x.rows.by_chance:.3f}"),
                f"{min(x.columns.angles, default=90):.0f} deg",
            )
            for x in found.layers
        ],
    )
