"""PEFT's file format, both ways: ``adapter_config.json`` and ``adapter_model.safetensors``.

Tensor keys are ``base_model.model.`` + module path + ``.lora_A.weight`` and the like; no adapter name.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.peft_config import CONFIG_FILE, read_json
from loralab.errors import AdapterError
from loralab.files import write_file, write_text

__all__ = [
    "CONFIG_FILE",
    "PREFIX",
    "WEIGHTS_FILE",
    "own_keys",
    "read_adapter",
    "read_config",
    "read_tensors",
    "write_adapter",
]

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PREFIX = "base_model.model."


def read_adapter(folder: str | Path, *, allow_pickle: bool = False) -> Adapter:
    """Return the adapter in `folder`, its tensors on the CPU in the dtype of the file.

    Raises:
        AdapterError: a file is missing, truncated or malformed, or only a pickle is there and `allow_pickle`
            is False: loading a pickle can run any program that its author put into it.
    """
    folder = Path(folder)
    return Adapter(read_config(folder), read_tensors(folder, allow_pickle=allow_pickle))


def read_tensors(folder: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Return the tensors of the adapter in `folder`, as `read_adapter` does, without its config."""
    weights, pickled = folder / WEIGHTS_FILE, folder / PICKLE_FILE
    if weights.is_file():
        tensors = _read_safetensors(weights)
    elif pickled.is_file() and allow_pickle:
        tensors = _read_pickle(pickled)
    elif pickled.is_file():
        raise AdapterError(
            f"{pickled}: a pickle file, which can run any program when loaded. If you trust its author, "
            "ask for it by name: --allow-pickle, or allow_pickle=True."
        )
    else:
        raise AdapterError(f"{folder}: no {WEIGHTS_FILE} beside {CONFIG_FILE}; is the copy complete?")
    if not tensors:
        raise AdapterError(f"{folder}: the adapter holds no tensors.")
    return own_keys(tensors)


def read_config(folder: Path) -> LoraConfig:
    """Return the config of the adapter in `folder`.

    Raises:
        AdapterError: the file is missing, is no JSON object, or asks for what loralab does not know.
    """
    values = read_json(folder)
    path = folder / CONFIG_FILE
    if "peft_type" not in values:
        raise AdapterError(f"{path}: expected a JSON object with 'peft_type': 'LORA'.")
    return LoraConfig.from_dict(values, where=str(path))


def write_adapter(adapter: Adapter, folder: str | Path) -> None:
    """Write an adapter as PEFT would; the same adapter always gives the same bytes.

    Other files in `folder` stay. Each of the two files is written whole or not at all, the config last.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    folder = Path(folder)
    # Copies, because safetensors refuses tensors that share memory, as tied biases do.
    tensors = {
        f"{PREFIX}{key}": adapter.tensors[key].detach().cpu().clone(memory_format=torch.contiguous_format)
        for key in sorted(adapter.tensors)
    }
    write_file(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    write_text(folder / CONFIG_FILE, adapter.config.to_json())


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise AdapterError(
            f"{path}: not a complete safetensors file ({error}). It may be truncated; copy or train it again."
        ) from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise AdapterError(f"{path}: not a plain file of tensors ({reason}).") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise AdapterError(f"{path}: expected a dictionary of tensors.")
    return tensors


def own_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under their keys in an `Adapter`.

    The prefix goes, and the adapter's name where an old or hand-made file carries one.
    """
    named = re.compile(r"\.(lora_(?:A|B|embedding_A|embedding_B))\.(?!weight$|bias$)[^.]+(\.weight|\.bias|)$")
    return {named.sub(r".\1\2", key.removeprefix(PREFIX)): tensor for key, tensor in tensors.items()}
