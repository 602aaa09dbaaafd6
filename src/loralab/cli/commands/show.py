"""``loralab show``."""

from pathlib import Path

from loralab.cli.output import Output, Screen
from loralab.cli.writing import check_picture


def command(
    adapter: str,
    /,
    *,
    plot: Path | None = None,
    runs: str = "runs",
    allow_pickle: bool = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Show what an adapter is made of: its base, ranks, scales, and how far it moves each weight.

    Beside each module's rank stand two effective ranks of its delta D: stable, |D|_F^2 / |D|_2^2, and
    entropy, exp of the entropy of its singular values. Both are far below r where a smaller r would do.

    Parameters
    ----------
    adapter
        Adapter: a folder, a run's name, or a hub id.
    plot
        Write a picture of the singular values, norms and stable ranks to this file (.png, .svg or .pdf).
    runs
        Folder that holds the runs.
    allow_pickle
        Load an adapter that is a pickle file.
    """
    import dataclasses

    from loralab.adapters.store import find_adapter
    from loralab.core.describe import describe
    from loralab.tools.old_peft import read_current

    screen = Screen(output)
    check_picture(plot)
    folder = find_adapter(adapter, runs)
    read = read_current(folder, allow_pickle=allow_pickle)
    config = read.config
    layers = describe(read)
    rows = [dataclasses.asdict(layer) for layer in layers]
    for row in rows:
        row["in"] = row.pop("inputs")
    screen.data(
        {
            "folder": str(folder),
            "base": config.base_model_name_or_path,
            "parameters": read.parameters,
            "digest": read.digest(),
            "modules": rows,
        }
    )
    screen.fact("adapter", str(folder))
    screen.fact("base", str(config.base_model_name_or_path))
    screen.fact("rank", f"{config.r}, alpha {config.lora_alpha:g}{', rsLoRA' if config.use_rslora else ''}")
    screen.fact("numbers", f"{read.parameters:,} in {len(read.tensors)} tensors, on {len(rows)} modules")
    screen.fact("digest", read.digest())
    if layers and all(layer.norm == 0 for layer in layers):
        screen.fact("note", "every delta is zero: this adapter changes nothing.")
    dora = [layer for layer in layers if layer.magnitude is not None]
    if dora:
        screen.fact(
            "DoRA", f"magnitudes |m| on {len(dora)} of {len(rows)} modules; the other numbers are of BA alone"
        )
    if plot:
        from loralab.pictures import adapter_figure, save

        # A run keeps its adapter in a folder called so.
        title = folder.parent.name if folder.name == "adapter" else folder.name
        save(adapter_figure(layers, title), plot)
        screen.fact("picture", str(plot))
    screen.table(
        (
            "module",
            "r",
            "in",
            "out",
            "scaling",
            "|BA|",
            "s1",
            "stable",
            "entropy",
            *(("|m|",) if dora else ()),
        ),
        [
            (
                *(layer.module, layer.r, layer.inputs, layer.out, f"{layer.scaling:g}"),
                "grouped" if layer.norm is None else f"{layer.norm:.4f}",
                f"{layer.spectrum[0]:.4f}" if layer.spectrum else "-",
                f"{layer.stable_rank:.2f}",
                f"{layer.entropy_rank:.2f}",
                *(("-" if layer.magnitude is None else f"{layer.magnitude:.4f}",) if dora else ()),
            )
            for layer in layers
        ],
    )
