"""``loralab export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from loralab.cli.output import Output, Screen
from loralab.cli.writing import check_out
from loralab.errors import ConfigError

if TYPE_CHECKING:
    from loralab.tools.export import Exported


def command(
    kind: Literal["merged", "gguf", "vllm"],
    /,
    *,
    model: str,
    adapter: str,
    out: Path | None = None,
    name: str | None = None,
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
    serves the adapter, once vLLM's limits are checked.

    Parameters
    ----------
    kind
        What to make.
    model
        Base model: a folder, a hub id, or "demo".
    adapter
        Adapter: a folder, a run's name, or a hub id.
    out
        Folder (merged) or file (gguf) to write.
    name
        Name under which vllm serves the adapter; left out, its folder's.
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
    if (out is None) != (kind == "vllm"):
        raise ConfigError("--out: vllm writes nothing." if out else f"--out is missing: {kind} writes there.")
    if out is not None:
        check_out(out, overwrite, (Path(model), Path(adapter)))
    folder = find_adapter(adapter, runs)
    read = read_current(folder, allow_pickle=allow_pickle)
    if kind == "vllm":
        from loralab.tools.vllm import serving_command

        line = serving_command(read, folder, model, name or folder.name)
        screen.data({"command": line})
        screen.say(line)
    elif kind == "gguf" and out is not None:
        from loralab.tools.checkpoint import Checkpoint, find_checkpoint
        from loralab.tools.gguf import export_gguf

        modules = export_gguf(read, Checkpoint(find_checkpoint(model)).config, out)
        screen.data({"out": str(out), "modules": modules})
        screen.fact("exported", f"{modules} modules into {out}; llama.cpp loads it with --lora {out}")
    elif out is not None:
        import torch

        from loralab.tools.export import export_merged

        chosen = None if dtype == "stored" else getattr(torch, dtype)
        exported = export_merged(model, read, out, dtype=chosen, check=verify)
        show_merged(screen, exported, out)


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
