"""``loralab convert``."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from loralab.cli.output import Output, Screen
from loralab.cli.writing import check_out, save_adapter

Format = Literal["peft", "kohya", "diffusers", "loralib", "xlabs"]


def command(
    adapter: str,
    /,
    *,
    out: Path,
    to: Format = "peft",
    source: Annotated[Format | None, Parameter(name="--from")] = None,
    component: str | None = None,
    lora_alpha: float | None = None,
    base: str | None = None,
    runs: str = "runs",
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    allow_pickle: bool = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Write an adapter in another file format; what a format cannot express is refused by name.

    Parameters
    ----------
    adapter
        Adapter: a file of any format (told by its keys), a folder, a run's name, or a hub id.
    out
        Folder to write for peft, else one .safetensors file (for loralib also .bin).
    to
        Format to write.
    source
        Format of the file, where its keys do not tell.
    component
        Part of an image model: unet, transformer, text_encoder, text_encoder_2 and so on.
    lora_alpha
        Numerator of the scale, where the file does not say it.
    base
        The model that the adapter is for; a folder tells kohya's names of modules apart.
    runs
        Folder that holds the runs.
    overwrite
        Replace what is there.
    allow_pickle
        Load an adapter that is a pickle file.
    """
    from loralab.adapters.store import find_adapter
    from loralab.tools.convert import read_any, with_component, write_any

    screen = Screen(output)
    check_out(out, overwrite, (Path(adapter),))
    path = Path(adapter) if Path(adapter).is_file() else find_adapter(adapter, runs)
    read = read_any(path, format=source, lora_alpha=lora_alpha, base=base, allow_pickle=allow_pickle)
    folder = to == "peft" and out.suffix != ".safetensors"
    # PEFT's paths are those of one model; the first word of GPT-2's is "transformer" too.
    whole = component is None and read.format == "peft"
    ready = read.adapter if whole else with_component(read.adapter, component, keep=not folder)
    if folder:
        save_adapter(ready, out, [path] if path.is_dir() else [])
    else:
        write_any(ready, out, to)
    modules = len(ready.modules())
    screen.data({"out": str(out), "from": read.format, "to": to, "modules": modules})
    screen.fact("converted", f"{modules} modules from {read.format} to {to}, into {out}")
    if to == "loralib":
        screen.fact(
            "note", f"the file does not hold it: build the layers with lora_alpha={ready.config.lora_alpha:g}"
        )
