"""``loralab export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from loralab.cli.output import Output, Screen
from loralab.cli.writing import check_out
from loralab.errors import ConfigError

if TYPE_CHECKING:
    from loralab.core.adapter import Adapter
    from loralab.tools.export import Exported
    from loralab.tools.vllm import Served

_ONLY = {"dtype": "merged", "verify": "merged", "name": "vllm", "slots": "vllm"}
"""Options that one kind has and the others do not."""


def command(
    kind: Literal["merged", "gguf", "vllm"],
    /,
    *,
    model: str,
    adapter: Annotated[list[str], Parameter(consume_multiple=True, negative=())],
    out: Path | None = None,
    name: str | None = None,
    slots: int | None = None,
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored",
    verify: bool = True,
    runs: str = "runs",
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    allow_pickle: bool = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Make an adapter usable elsewhere: a merged model, a llama.cpp file, or a command for vLLM.

    merged writes a model folder from the base's files, one at a time, and compares its logits with those of
    the live adapter before it says done. gguf writes a LoRA file for llama.cpp. vllm prints the command that
    serves one adapter or many, once vLLM's limits are checked; what is to be known besides goes to stderr.

    Parameters
    ----------
    kind
        What to make.
    model
        Base model: a folder, a hub id, or "demo".
    adapter
        Adapter: a folder, a run's name, or a hub id. For vllm also several, or a folder of adapters or runs.
    out
        Folder (merged) or file (gguf) to write.
    name
        Name under which vllm serves a single adapter; left out, its run's or its folder's.
    slots
        How many adapters vllm runs in one batch; left out, all up to 32.
    dtype
        Precision of the merged weights: stored is the base's own.
    verify
        Compare the merged model's logits with the live adapter's.
    runs
        Folder that holds the runs.
    overwrite
        Replace what is there.
    allow_pickle
        Load an adapter that is a pickle file.
    """
    from loralab.adapters.store import find_adapter
    from loralab.tools.old_peft import read_current

    screen = Screen(output)
    given = {"dtype": dtype != "stored", "verify": not verify, "name": name, "slots": slots is not None}
    for option, needs in _ONLY.items():
        if given[option] and kind != needs:
            raise ConfigError(f"--{option} has no effect here: it is for {needs}.")
    if (out is None) != (kind == "vllm"):
        raise ConfigError("--out: vllm writes nothing." if out else f"--out is missing: {kind} writes there.")
    if out is None:
        show_vllm(screen, model, _for_vllm(model, adapter, runs, name, allow_pickle), slots)
        return
    if len(adapter) != 1:
        raise ConfigError(f"--adapter: {kind} takes one adapter, not {len(adapter)}; see 'loralab combine'.")
    check_out(out, overwrite, (Path(model), Path(adapter[0])))
    read = read_current(find_adapter(adapter[0], runs), allow_pickle=allow_pickle)
    if kind == "gguf":
        from loralab.tools.checkpoint import Checkpoint, find_checkpoint
        from loralab.tools.gguf import export_gguf

        modules = export_gguf(read, Checkpoint(find_checkpoint(model)).config, out)
        screen.data({"out": str(out), "modules": modules})
        screen.fact("exported", f"{modules} modules into {out}; llama.cpp loads it with --lora {out}")
    else:
        import torch

        from loralab.tools.export import export_merged

        chosen = None if dtype == "stored" else getattr(torch, dtype)
        exported = export_merged(model, read, out, dtype=chosen, check=verify)
        show_merged(screen, exported, out)


def _for_vllm(
    model: str, names: list[str], runs: str, called: str | None, allow_pickle: bool
) -> list["Served"]:
    """Return the adapters, checked one at a time: their tensors are not in memory together."""
    from loralab.tools.checkpoint import Checkpoint, find_checkpoint
    from loralab.tools.old_peft import read_current
    from loralab.tools.vllm import check_base, check_served

    folders = [found for name in names for found in _folders(name, runs)]
    if called and len(folders) != 1:
        raise ConfigError(f"--name names one adapter, and there are {len(folders)}; leave it out.")
    here = model == "demo" or Path(model).is_dir()
    checkpoint = Checkpoint(find_checkpoint(model)) if here else None
    served = []
    for name, folder in folders:
        adapter: Adapter = read_current(folder, allow_pickle=allow_pickle)
        served.append(check_served(adapter, folder, called or name))
        if checkpoint is not None:
            check_base(adapter, folder, checkpoint)
    return served


def _folders(name: str, runs: str) -> list[tuple[str, Path]]:
    """Return the adapters that `name` stands for, called as ``loralab serve`` calls them."""
    from loralab.adapters.store import find_adapter
    from loralab.serving.reading import Roots

    if Path(name).is_dir() and not (Path(name) / "adapter_config.json").is_file():
        found = list(Roots([Path(name)]).names().items())
        if found:
            return found
    folder = find_adapter(name, runs)
    real = folder.resolve()
    return [(real.parent.name if real.name == "adapter" else real.name, folder)]


def show_vllm(screen: Screen, model: str, served: list["Served"], slots: int | None) -> None:
    """Print the command, and to stderr what it does not say, so that the command alone can be run."""
    import sys

    from loralab.tools.checkpoint import find_checkpoint
    from loralab.tools.vllm import serving_command, serving_notes

    base = str(find_checkpoint(model)) if model == "demo" else model
    line = serving_command(base, served, 32 if slots is None else slots)
    notes = serving_notes(base, served)
    screen.data({"command": line, "adapters": [one.name for one in served], "notes": notes})
    screen.say(line)
    for note in notes:
        print(f"loralab: note: {note}.", file=sys.stderr)


def show_merged(screen: Screen, exported: "Exported", out: Path) -> None:
    """Print what became of every layer, and the verdict."""
    import dataclasses

    layers, done = exported.layers, exported.verified
    screen.data({"out": str(out), **dataclasses.asdict(exported)})
    worst = max(layers, key=lambda layer: layer.loss)
    screen.fact("exported", f"{len(layers)} merged weights in {len(exported.files)} files, into {out}")
    screen.fact("rounding", f"loses {100 * worst.loss:.2g} % of a delta at most, at {worst.name}")
    if exported.untied:
        screen.fact("note", "the output head now has a weight of its own; the base shared the embedding's.")
    if done:
        verdict = f"logits differ from the live adapter's by {done.difference:.2g}"
        screen.fact("verified", f"{verdict}; the adapter moves them by {done.effect:.2g}")
    else:
        screen.fact("verified", "no, as you asked.")
    screen.table(
        ("weight", "dtype", "|BA|", "lost in rounding"),
        [(layer.name, layer.dtype, f"{layer.norm:.4f}", f"{layer.loss:.2g}") for layer in layers],
    )
