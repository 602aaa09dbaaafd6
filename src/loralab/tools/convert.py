"""Adapters from one file format into another."""

import dataclasses
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loralab.adapters import write_adapter
from loralab.adapters.peft_format import CONFIG_FILE
from loralab.core.adapter import Adapter
from loralab.core.derived import with_scales
from loralab.core.finite import check_finite
from loralab.errors import AdapterError, ConfigError, did_you_mean
from loralab.files import write_file
from loralab.tools.checkpoint import Checkpoint, find_checkpoint
from loralab.tools.formats import REGISTRY, detect
from loralab.tools.formats._build import Hints
from loralab.tools.old_peft import read_current, read_fused, says_fused

__all__ = ["COMPONENTS", "Source", "read_any", "with_component", "write_any"]

COMPONENTS = (
    *("unet", "transformer", "diffusion_model", "prior"),
    *("text_encoder", "text_encoder_2", "text_encoder_3"),
)
"""The parts of an image model that adapters are made for."""
_PICKLES = (".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Source:
    """An adapter and the format that it was read from."""

    adapter: Adapter
    format: str


def read_any(
    path: str | Path,
    *,
    format: str | None = None,
    lora_alpha: float | None = None,
    base: str | None = None,
    allow_pickle: bool = False,
) -> Source:
    """Return the adapter in a PEFT folder, or in a file of any known format, which is told by its keys.

    `lora_alpha` is for formats whose files do not say it. `base`, a model folder or name, tells the paths of
    modules where a format has mangled them. An old PEFT folder for parts of fused layers becomes a plain
    adapter, see `read_fused`.

    Raises:
        AdapterError: it cannot be read or expressed, holds numbers that are not finite, or it is a pickle and
            `allow_pickle` is False.
        ConfigError: `lora_alpha` is given for a PEFT folder, which has its own.
    """
    path = Path(path)
    if path.is_dir():
        if lora_alpha is not None:
            raise ConfigError(
                f"lora_alpha={lora_alpha:g} has no effect on {path}: {CONFIG_FILE} there says it."
            )
        read = read_fused if says_fused(path) else read_current
        return _finite(Source(read(path, allow_pickle=allow_pickle), "peft"))
    tensors = _load(path, allow_pickle)
    name = format or detect(tensors, str(path))
    modules = _module_paths(base) if base and Path(base).is_dir() else frozenset()
    try:
        adapter = REGISTRY.get(name).read(tensors, Hints(lora_alpha, base, modules))
    except AdapterError as error:
        raise AdapterError(f"{path} ({name}): {error}") from None
    return _finite(Source(adapter, name))


def with_component(adapter: Adapter, component: str | None, keep: bool) -> Adapter:
    """Return the part of `adapter` that belongs to a component of an image model.

    With `keep` its paths begin with the component's name, as single files have it; without, they are those of
    the one model that the adapter is for, as PEFT's folders have it.

    Raises:
        AdapterError: the adapter is for several components and none was named, or has nothing for that one.
        ConfigError: there is no such component.
    """
    if component is not None and component not in COMPONENTS:
        raise ConfigError(
            f"unknown component {component!r}; known are {', '.join(COMPONENTS)}."
            + did_you_mean(component, COMPONENTS)
        )
    found = {path.partition(".")[0] for path in adapter.modules()} & set(COMPONENTS)
    if keep:
        if component is None or found:
            return adapter if component is None else _part(adapter, component, keep=True)
        return _moved(adapter, "", f"{component}.")
    if not found and component is None:
        return adapter
    if component is None and len(found) > 1:
        raise AdapterError(
            f"the adapter is for {', '.join(sorted(found))}, and a PEFT folder is for one model; choose one "
            "with --component."
        )
    return _part(adapter, component or next(iter(found)), keep=False)


def write_any(adapter: Adapter, path: str | Path, format: str = "peft") -> None:
    """Write an adapter: "peft" as a folder, any other format as one file.

    Files are safetensors; loralib's, which are pickles by custom, may end in ``.bin`` or ``.pt``.

    Raises:
        AdapterError: the format cannot hold it.
        ConfigError: unknown format, or a file name that does not fit it.
    """
    path = Path(path)
    if format == "peft" and path.suffix != ".safetensors":
        write_adapter(adapter, path)
        return
    tensors: Mapping[str, Tensor] = REGISTRY.get(format).write(adapter)
    ready = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in sorted(tensors.items())}
    if path.suffix == ".safetensors":
        write_file(path, lambda part: save_file(ready, part, metadata={"format": "pt"}))
    elif path.suffix in _PICKLES and format == "loralib":
        write_file(path, lambda part: torch.save(ready, part))
    else:
        raise ConfigError(f"{path}: a {format} adapter is one file; its name must end in .safetensors.")


def _finite(source: Source) -> Source:
    check_finite(source.adapter, "convert it")
    return source


def _load(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if not path.is_file():
        raise AdapterError(f"{path}: no such file or folder.")
    if path.suffix not in _PICKLES:
        try:
            return load_file(path)
        except (SafetensorError, ValueError, OSError) as error:
            raise AdapterError(f"{path}: not a complete safetensors file ({error}).") from None
    if not allow_pickle:
        raise AdapterError(
            f"{path}: a pickle file, which can run any program when loaded. If you trust its author, ask for "
            "it by name: --allow-pickle, or allow_pickle=True."
        )
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise AdapterError(
            f"{path}: cannot be loaded ({type(error).__name__}); is it a state dict?"
        ) from None
    if not isinstance(values, dict) or not all(isinstance(t, Tensor) for t in values.values()):
        raise AdapterError(f"{path}: expected a state dict, names and tensors and nothing else.")
    return values


def _module_paths(base: str) -> frozenset[str]:
    return frozenset(name.rpartition(".")[0] for name in Checkpoint(find_checkpoint(base)).tensors)


def _part(adapter: Adapter, component: str, keep: bool) -> Adapter:
    if not any(key.startswith(f"{component}.") for key in adapter.tensors):
        there = sorted({key.partition(".")[0] for key in adapter.tensors})
        raise AdapterError(f"the adapter has nothing for {component!r}; it is for {', '.join(there)}.")
    return _moved(adapter, f"{component}.", f"{component}." if keep else "")


def _moved(adapter: Adapter, old: str, new: str) -> Adapter:
    """Return what lies under the prefix `old`, under `new` instead, each module with its rank and alpha."""

    def move(name: str) -> str:
        return new + name.removeprefix(old)

    config = adapter.config
    scales = {
        move(path): (config.rank_of(path), config.alpha_of(path))
        for path in adapter.modules()
        if path.startswith(old)
    }
    targets = config.target_modules
    if isinstance(targets, set):
        targets = {move(name) for name in targets if name.startswith(old)}
    saved = [move(name) for name in config.modules_to_save or () if name.startswith(old)]
    config = dataclasses.replace(
        with_scales(config, scales), target_modules=targets, modules_to_save=saved or None
    )
    return Adapter(config, {move(key): t for key, t in adapter.tensors.items() if key.startswith(old)})
