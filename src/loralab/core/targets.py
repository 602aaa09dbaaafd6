"""Which modules of a model to adapt."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from loralab.core.config import LoraConfig
from loralab.core.layers import LoraLayer, is_linear
from loralab.core.saved import AuxiliaryTrainingWrapper
from loralab.errors import TargetError, did_you_mean

__all__ = [
    *("PRESETS", "Targets", "find_parameters", "find_targets", "in_saved", "named", "original", "replace"),
    *("shorten", "walk"),
]

_BY_TARGETS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("q_proj", "v_proj"): (
        *("bart", "gemma", "gemma2", "gemma3_text", "gpt_neo", "gptj", "llama", "llama4", "mistral"),
        *("mixtral", "opt", "qwen2", "qwen3", "smollm3", "stablelm"),
    ),
    ("query", "value"): ("bert", "electra", "layoutlm", "roberta", "xlm-roberta"),
    ("query_key_value",): ("bloom", "chatglm", "falcon", "gpt_neox", "RefinedWeb", "RefinedWebModel"),
    ("q", "v"): ("mt5", "t5"),
    ("c_attn",): ("gpt2", "gpt_bigcode"),
    ("qkv_proj",): ("codegen",),
    ("in_proj",): ("deberta",),
    ("query_proj", "value_proj"): ("deberta-v2",),
    ("Wqkv",): ("mpt",),
    ("q_proj", "v_proj", "fc1", "fc2"): ("phi",),
    ("q", "v", "q_proj", "v_proj"): ("blip-2",),
    ("c_attn", "c_proj"): ("btlm",),
    ("k_proj", "o_proj", "q_proj", "v_proj"): ("nemotron_h",),
    ("key", "output", "receptance", "value"): ("rwkv",),
    ("k_proj", "key", "o_proj", "r_proj", "v_proj", "value"): ("rwkv7",),
}
DEFAULT_TARGETS: dict[str, tuple[str, ...] | str] = {
    **{kind: names for names, kinds in _BY_TARGETS.items() for kind in kinds},
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
}
"""What ``target_modules=None`` means by model type: PEFT's table, for scripts that come from there."""


def _is_attention(path: str) -> bool:
    return any(re.search(r"attn|attention", part, re.IGNORECASE) for part in path.split("."))


def _is_feed_forward(path: str) -> bool:
    return not _is_attention(path) and any(part.isdigit() for part in path.split("."))


PRESETS: dict[str, Callable[[str], bool]] = {
    "all-linear": lambda path: True,
    "attention": _is_attention,
    "feed-forward": _is_feed_forward,
}
"""Presets choose among a model's linear layers, the output head aside, by their place in it."""


@dataclass(frozen=True)
class Targets:
    """The modules to adapt, in the model's own order, and what did not match."""

    paths: tuple[str, ...]
    unmatched: tuple[str, ...]
    """Entries of a list in `target_modules` that no module answers to."""


def find_targets(
    model: nn.Module, config: LoraConfig, modules: Mapping[str, nn.Module] | None = None
) -> Targets:
    """Return the paths of the modules that `config` targets; `modules` is what `walk` yields, if known.

    Raises:
        TargetError: nothing matches; the message names the nearest module names.
    """
    modules = dict(walk(model)) if modules is None else modules
    wanted = _wanted(model, config)
    if not wanted and _beside(config):
        return Targets((), ())
    if isinstance(wanted, str) and wanted in PRESETS:
        head = _output_head(model)
        choose = PRESETS[wanted]
        chosen = [p for p, m in modules.items() if is_linear(m) and m is not head and choose(p)]
        chosen = [p for p in chosen if _in_layers(p, config)]
        unmatched: tuple[str, ...] = ()
    elif isinstance(wanted, str):
        chosen = [path for path in modules if _fullmatch(wanted, path)]
        unmatched = ()
    else:
        chosen = [p for p in modules if named(p, wanted) and _in_layers(p, config)]
        unmatched = tuple(sorted(name for name in wanted if not any(named(p, {name}) for p in modules)))
    paths = [path for path in chosen if not _excluded(path, config)]
    if not paths:
        raise TargetError(_nothing(wanted, config, modules, chosen))
    return Targets(tuple(paths), unmatched)


def find_parameters(model: nn.Module, config: LoraConfig) -> dict[str, tuple[str, ...]]:
    """Return what `target_parameters` names: by module path, its parameters in the order of registration.

    Raises:
        TargetError: an entry matches no parameter, or one of the model itself.
    """
    wanted = config.target_parameters
    if not wanted:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    matched: set[str] = set()
    known: set[str] = set()
    for path, module in [("", model), *walk(model)]:
        names = [name for name, _ in module.named_parameters(recurse=False)]
        full = {name: f"{path}.{name}" if path else name for name in names}
        known.update(full.values())
        chosen = tuple(name for name in names if named(full[name], wanted))
        matched.update(entry for entry in wanted for name in chosen if named(full[name], {entry}))
        if chosen and not path:
            raise TargetError(
                f"target_parameters: {chosen[0]!r} is a parameter of the whole model; only those of modules "
                "inside it can be adapted."
            )
        if chosen:
            found[path] = chosen
    unmatched = [entry for entry in wanted if entry not in matched]
    if unmatched:
        leaves = sorted({name.rpartition(".")[2] for name in known})
        raise TargetError(
            f"target_parameters: {unmatched[0]!r} matches no parameter of this model."
            + did_you_mean(unmatched[0].rpartition(".")[2], leaves)
        )
    return found


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) below `model` as its author built it: an adapted module shows the original.

    A module that stands in several places is yielded for the first one.
    """
    seen: set[int] = set()
    waiting = _children(model, "")
    while waiting:
        path, child = waiting.pop()
        if id(child) in seen:
            continue
        seen.add(id(child))
        module = original(child)
        yield path, module
        waiting += _children(module, f"{path}.")


def _children(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    """Return the children with their paths, the last one first."""
    children = reversed(module._modules.items())
    return [(f"{prefix}{name}", child) for name, child in children if child is not None]


def original(module: nn.Module) -> nn.Module:
    """Return the module as its author built it, which may be `module` itself."""
    while True:
        if isinstance(module, LoraLayer):
            module = module.holder
        elif isinstance(module, AuxiliaryTrainingWrapper):
            module = module.original_module
        else:
            return module


def replace(model: nn.Module, swaps: Mapping[int, nn.Module]) -> None:
    """Put other modules in the place of those with these ids, wherever they stand."""
    seen: set[int] = set()

    def below(parent: nn.Module) -> None:
        # Not named_children(), which passes over a module that stands twice in one parent.
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            if id(child) in swaps:
                setattr(parent, name, swaps[id(child)])
            if id(child) not in seen:
                seen.add(id(child))
                below(original(child))

    below(model)


def shorten(paths: Collection[str], all_paths: Collection[str]) -> set[str]:
    """Return the shortest set of name endings that matches exactly `paths` among `all_paths`."""

    def endings(path: str) -> list[str]:
        parts = path.split(".")
        return [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]

    chosen = Counter(ending for path in paths for ending in endings(path))
    everywhere = Counter(ending for path in all_paths for ending in endings(path))
    return {next((e for e in endings(p) if chosen[e] == everywhere[e]), p) for p in paths}


def _wanted(model: nn.Module, config: LoraConfig) -> str | Collection[str]:
    if config.target_modules is not None:
        return config.target_modules
    kind = _model_type(model)
    if kind in DEFAULT_TARGETS:
        names = DEFAULT_TARGETS[kind]
        return names if isinstance(names, str) else set(names)
    if _beside(config):
        return set()
    raise TargetError(
        f"target_modules is not set and there is no default for a model of type {kind!r}; "
        "set target_modules='all-linear', or name the modules."
    )


def _beside(config: LoraConfig) -> bool:
    """Return whether the adapter changes something although no module is targeted."""
    return bool(config.target_parameters or config.trainable_token_indices or config.modules_to_save)


def _model_type(model: nn.Module) -> str | None:
    config = getattr(model, "config", None)
    if isinstance(config, Mapping):
        return config.get("model_type")
    return getattr(config, "model_type", None)


def _output_head(model: nn.Module) -> nn.Module | None:
    """Return what turns hidden states into the task's scores; presets leave it alone, as PEFT does."""
    finder = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = finder() if callable(finder) else None
    if head is None:
        heads = [getattr(model, name, None) for name in ("score", "classifier", "qa_outputs")]
        head = next((h for h in heads if isinstance(h, nn.Module)), None)
    return None if head is None else original(head)


def in_saved(path: str, names: Collection[str]) -> bool:
    """Return whether the module at `path` is, or lies in, one that `modules_to_save` names.

    By the ends of paths, as PEFT does: "norm" names every module whose name ends so.
    """
    parts = path.split(".")
    outer = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(place.endswith(name) for place in outer for name in names)


def named(path: str, names: Collection[str]) -> bool:
    """Return whether `path` is one of the names, or ends with one after a dot."""
    return f".{path}".endswith(tuple(f".{name}" for name in names))


def _fullmatch(pattern: str, path: str) -> bool:
    try:
        return re.fullmatch(pattern, path) is not None
    except re.error as error:
        raise TargetError(f"{pattern!r} is not a regular expression: {error}.") from None


def _in_layers(path: str, config: LoraConfig) -> bool:
    wanted = config.layers_to_transform
    if wanted is None or wanted == []:
        return True
    indices = [wanted] if isinstance(wanted, int) else wanted
    patterns = config.layers_pattern or r"[^.]*"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", path)
        if found:
            return int(found.group(1)) in indices
    return False


def _excluded(path: str, config: LoraConfig) -> bool:
    exclude = config.exclude_modules
    if exclude and (_fullmatch(exclude, path) if isinstance(exclude, str) else named(path, exclude)):
        return True
    saved = (*(config.modules_to_save or ()), *config.heads)
    return any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in saved)


def _nothing(
    wanted: str | Collection[str],
    config: LoraConfig,
    modules: Mapping[str, nn.Module],
    chosen: Collection[str],
) -> str:
    shown = wanted if isinstance(wanted, str) else sorted(wanted)
    if chosen:
        return (
            f"target_modules={shown!r} matches {len(chosen)} modules, but exclude_modules or modules_to_save "
            "takes all of them away."
        )
    limits = ""
    if config.layers_to_transform is not None:
        limits = f" in layers_to_transform={config.layers_to_transform!r}"
    leaves = sorted({path.rpartition(".")[2] for path, module in modules.items() if is_linear(module)})
    words = [wanted] if isinstance(wanted, str) else sorted(wanted)
    near = "".join(did_you_mean(word.rpartition(".")[2], leaves) for word in words[:3])
    if isinstance(wanted, str) and any(re.fullmatch(f".*({wanted})", path) for path in modules):
        near = f" A regex must match the whole name: try '.*({wanted})'."
    return (
        f"target_modules={shown!r} matches no module{limits} of this model.{near} "
        f"Its linear layers are {', '.join(leaves) or 'none'}; 'all-linear' takes them all."
    )
