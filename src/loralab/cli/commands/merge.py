"""``loralab merge``."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from loralab.cli.output import Output, Screen
from loralab.cli.writing import check_out


def command(
    *,
    model: str,
    adapter: str,
    out: Path,
    runs: str = "runs",
    dtype: str = "stored",
    rounding: Literal["nearest", "stochastic"] = "nearest",
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    allow_pickle: bool = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Write the base with the adapter merged into its weights: a model folder that needs no loralab.

    Each weight is W + scale * B A, added in float32 and rounded once to the dtype of the result.

    Parameters
    ----------
    model
        Base model: a folder, a hub id, or "demo".
    adapter
        Adapter: a folder, a run's name, or a hub id.
    out
        Folder to write; it must not exist, or be empty.
    runs
        Folder that holds the runs.
    dtype
        Precision of the result: stored (the base's own), float32, bfloat16, float16.
    rounding
        How a sum becomes a number of that precision: the nearest, or (stochastic) the next above or below, at
        random, so that the sums are right on average.
    overwrite
        Replace the folder.
    allow_pickle
        Load a base or adapter that is a pickle file.
    """
    from loralab.adapters import PeftModel
    from loralab.adapters.store import find_adapter
    from loralab.core.finite import check_finite
    from loralab.files import new_folder
    from loralab.models import load_base
    from loralab.models.quiet import quiet
    from loralab.tools.old_peft import read_current

    screen = Screen(output)
    folder = find_adapter(adapter, runs)
    check_out(out, overwrite, (Path(model), folder))
    check_finite(read_current(folder, allow_pickle=allow_pickle), "merge it")
    base = load_base(model, dtype, allow_pickle=allow_pickle)
    adapted = PeftModel.from_pretrained(base.model, folder, allow_pickle=allow_pickle)
    modules = len(adapted.base_model.lora_layers)
    report = adapted.merge_adapter(rounding=rounding)
    merged = adapted.unload_merged()
    with quiet(), new_folder(out) as temporary:
        merged.save_pretrained(temporary)
        base.tokenizer.save_pretrained(temporary)
    precision = str(base.dtype).removeprefix("torch.")
    errors = {path: layer.error for path, layer in report.layers.items()}
    screen.data(
        {"out": str(out), "modules": modules, "dtype": precision, "error": report.error, "layers": errors}
    )
    screen.fact("merged", f"{modules} modules of {model}, {precision}, into {out}")
    if report.layers:
        worst = errors[report.worst]
        screen.fact(
            "rounding",
            f"changed the delta by {report.error:.2%} of its norm, most ({worst:.2%}) in {report.worst}",
        )
