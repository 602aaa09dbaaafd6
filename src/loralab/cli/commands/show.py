"""``loralab show``."""

from loralab.cli.output import Output, Screen


def command(
    adapter: str,
    /,
    *,
    runs: str = "runs",
    allow_pickle: bool = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Show what an adapter is made of: its base, ranks, scales, and how far it moves each weight.

    Parameters
    ----------
    adapter
        Adapter: a folder, a run's name, or a hub id.
    runs
        Folder that holds the runs.
    allow_pickle
        Load an adapter that is a pickle file.
    """
    from loralab.adapters import read_adapter
    from loralab.adapters.store import find_adapter

    screen = Screen(output)
    folder = find_adapter(adapter, runs)
    read = read_adapter(folder, allow_pickle=allow_pickle)
    config = read.config
    rows = [
        {
            "module": path,
            "r": factors.rank,
            "in": factors.a_RI.shape[1],
            "out": factors.b_OR.shape[0],
            "scaling": factors.scaling,
            "norm": factors.norm(),
        }
        for path, factors in read.modules().items()
    ]
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
    if rows and not any(row["norm"] for row in rows):
        screen.fact("note", "every delta is zero: this adapter changes nothing.")
    screen.table(
        ("module", "r", "in", "out", "scaling", "|BA|"),
        [(r["module"], r["r"], r["in"], r["out"], f"{r['scaling']:g}", f"{r['norm']:.4f}") for r in rows],
    )
