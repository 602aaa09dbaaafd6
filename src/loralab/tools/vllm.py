"""The command that serves adapters with vLLM, once its limits are checked."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loralab.adapters.habits import read_habits
from loralab.core.adapter import Adapter
from loralab.core.finite import check_finite
from loralab.core.tokens import TOKEN_ROWS
from loralab.errors import AdapterError, ConfigError
from loralab.tools.checkpoint import Checkpoint
from loralab.tools.kinds import tied_head
from loralab.tools.parts import rest_of

__all__ = ["RANKS", "Served", "check_base", "check_served", "serving_command", "serving_notes"]

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for ``--max-lora-rank``."""

_MERGE = "'loralab export merged' makes it a model of its own"


@dataclass(frozen=True)
class Served:
    """An adapter that vLLM can serve."""

    name: str
    folder: Path
    rank: int
    """The highest of its modules'."""
    base: str
    """What it says it was trained on; "" if nothing."""
    template: str
    """The prompt template it was trained in; "auto" is the base's own."""


def check_served(adapter: Adapter, folder: Path, name: str) -> Served:
    """Return what vLLM has to know of the adapter in `folder`.

    Raises:
        AdapterError: vLLM would refuse the adapter, or serve something else; all reasons are given at once.
            Or it holds numbers that are not finite.
    """
    check_finite(adapter, "serve it")
    faults = list(_faults(adapter))
    if faults:
        raise AdapterError(f"{folder}: vLLM cannot serve this adapter: {'; '.join(faults)}.")
    config = adapter.config
    base = config.base_model_name_or_path or ""
    return Served(name, folder.resolve(), _rank(adapter), base, read_habits(folder).template)


def check_base(adapter: Adapter, folder: Path, checkpoint: Checkpoint) -> None:
    """Hold the adapter in `folder` to the base's own weights.

    Raises:
        AdapterError: the base has no such module, or one of another shape.
    """
    tied = tied_head(checkpoint.tensors, checkpoint.config)
    for path, factors in adapter.modules().items():
        stored = tied[0] if tied and path == tied[1] else path
        # A file of the bare model lacks the first word.
        names = (f"{stored}.weight", f"{stored.partition('.')[2]}.weight")
        found = next((checkpoint.tensors[name] for name in names if name in checkpoint.tensors), None)
        if found is None:
            raise AdapterError(
                f"{folder}: {checkpoint.folder} has no {path}. Was it trained on another base?"
            )
        shape = (factors.b_OR.shape[0], factors.a_RI.shape[1])
        if found.shape not in (shape, shape[::-1]):
            raise AdapterError(
                f"{folder}: at {path} it is made for {list(shape)}, and {checkpoint.folder} has "
                f"{list(found.shape)}. Was it trained on another base?"
            )


def serving_command(base: str, adapters: Sequence[Served], slots: int = 32) -> str:
    """Return the shell command that serves `base` and the adapters, up to `slots` of them in one batch.

    Raises:
        ConfigError: two adapters have one name, or one has the base's; they are none; or `slots` is not
            positive.
        AdapterError: the adapters say that they were trained on different bases.
    """
    if slots < 1 or not adapters:
        raise ConfigError(f"{len(adapters)} adapters in {slots} slots: there must be one of each at least.")
    named: dict[str, Served] = {}
    for one in adapters:
        other = named.setdefault(one.name, one)
        if other is not one:
            raise ConfigError(
                f"two adapters are called {one.name!r}: {other.folder} and {one.folder}; rename a folder."
            )
    if base in named:
        raise ConfigError(f"{named[base].folder}: the name {base!r} is the base's; rename the folder.")
    _check_one_base(adapters)
    batch = min(slots, len(adapters))
    words = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(_allowed(adapters))]
    words += ["--max-loras", str(batch), "--max-cpu-loras", str(len(adapters))]
    return shlex.join([*words, "--lora-modules", *map(_word, adapters)])


def serving_notes(base: str, adapters: Sequence[Served]) -> list[str]:
    """Return what the command does not say: ranks that are padded, other names of the base, templates."""
    notes = []
    allowed = _allowed(adapters)
    padded = [one for one in adapters if one.rank < allowed]
    if padded:
        ranks = ", ".join(str(rank) for rank in sorted({one.rank for one in padded}))
        notes.append(
            f"{len(padded)} of {len(adapters)} adapters are padded to rank {allowed} (theirs: {ranks}), and "
            "take its memory and time"
        )
    says = next((one.base for one in adapters if one.base), base)
    if _last(says) != _last(base):
        notes.append(f"the adapters say that they were trained on {says}; see that {base} is the same model")
    notes += [
        f"{one.name} was trained in the template {one.template!r}, and vLLM writes chats in the base's own; "
        "give it --chat-template, or send finished prompts to /v1/completions"
        for one in adapters
        if one.template not in ("auto", "tokenizer")
    ]
    return notes


def _faults(adapter: Adapter) -> Iterator[str]:
    """Yield why vLLM cannot serve the adapter."""
    config, modules = adapter.config, adapter.modules()
    if not modules:
        yield "it has no factors A and B"
    if _rank(adapter) > RANKS[-1]:
        yield f"rank {_rank(adapter)} is above {RANKS[-1]}; 'loralab resize' makes it smaller"
    if config.modules_to_save:
        yield f"modules_to_save ({', '.join(config.modules_to_save)}) are not served; {_MERGE}"
    if any(key.endswith(TOKEN_ROWS) for key in adapter.tensors) or config.trainable_token_indices:
        yield "trained tokens are not served; merge them with merge_and_unload() and save the model"
    if config.bias != "none" or any(key.endswith(".bias") for key in rest_of(adapter)):
        yield f"trained biases are not served; {_MERGE}"
    if config.use_dora or any(key.endswith("lora_magnitude_vector") for key in adapter.tensors):
        yield f"DoRA magnitudes are not served; {_MERGE}"
    if config.target_parameters:
        yield f"experts adapted by target_parameters are not served; {_MERGE}"
    if any(".lora_embedding_" in key for key in adapter.tensors):
        yield f"an adapted embedding is not served; {_MERGE}"
    scale = config.scaling(config.lora_alpha, config.r)
    others = [path for path, factors in modules.items() if factors.scaling != scale]
    if others:
        yield (
            f"{others[0]} is scaled by {modules[others[0]].scaling:g}, the config's r and lora_alpha say "
            f"{scale:g}, and vLLM reads those only; 'loralab resize' makes every scale 1"
        )


def _rank(adapter: Adapter) -> int:
    """Return the rank that vLLM needs room for: it looks at the config's r too."""
    return max([adapter.config.r, *(factors.rank for factors in adapter.modules().values())])


def _allowed(adapters: Sequence[Served]) -> int:
    highest = max(one.rank for one in adapters)
    return next(rank for rank in RANKS if rank >= highest)


def _check_one_base(adapters: Sequence[Served]) -> None:
    first: dict[str, Served] = {}
    for one in adapters:
        if one.base:
            first.setdefault(_last(one.base), one)
    if len(first) > 1:
        one, other = list(first.values())[:2]
        raise AdapterError(
            f"{one.name!r} says it was trained on {one.base}, and {other.name!r} on {other.base}: a server "
            "has one base; make a command for each. If they are the same, say so in adapter_config.json, "
            "base_model_name_or_path."
        )


def _last(base: str) -> str:
    """Return the part of a base's name that a copy in another place keeps."""
    return base.rstrip("/").rpartition("/")[2].lower()


def _word(one: Served) -> str:
    """Return name=path, or as JSON where vLLM would read the marks in it otherwise."""
    plain = f"{one.name}={one.folder}"
    if plain.count("=") == 1 and "," not in plain:
        return plain
    return json.dumps({"name": one.name, "path": str(one.folder)})
