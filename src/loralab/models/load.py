"""Base models and tokenizers from a folder or the hub. Pickles are refused unless asked for by name."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from loralab.errors import ModelError, did_you_mean
from loralab.hub import hub_answers
from loralab.models.demo import BASE as DEMO_BASE
from loralab.models.hardware import choose_device, choose_dtype, keep_few_kernels
from loralab.models.quantize import quantization, spare_odd_shapes
from loralab.models.quiet import quiet

__all__ = ["DEMO", "BaseModel", "load_base", "load_tokenizer", "weight_bytes"]

DEMO = "demo"
"""The name of the base model that comes with loralab."""

_NEAR = 0.75
"""How alike two names are before one is offered for the other, of 1."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


@dataclass(frozen=True)
class BaseModel:
    """A base model ready for adapters, in evaluation mode on its device, with its tokenizer."""

    name: str
    """As the user named it: a folder or a hub id."""
    model: Any
    tokenizer: Any
    dtype: torch.dtype
    device: torch.device


def load_base(
    name: str,
    dtype: str = "auto",
    *,
    allow_pickle: bool = False,
    quantize: str | None = None,
    on_host: bool = False,
) -> BaseModel:
    """Return the causal language model `name` (a folder, a hub id, or "demo") with its tokenizer.

    `dtype` is "auto", a dtype's name, or "stored" for that of the files. `quantize` is "nf4" or "int8": the
    linear layers but the last are kept in 4 or 8 bits (bitsandbytes), and compute in the dtype. With
    `on_host` the weights are left in the host's memory.

    Raises:
        ModelError: no such model, a file is missing or damaged, its weights are a pickle, or they are to be
            quantized and are so already.
        ConfigError: no dtype or quantization of that name, or bitsandbytes is not installed.
    """
    keep_few_kernels()
    device = choose_device()
    where = _resolve(name)
    _check_folder(where, allow_pickle)
    config = load_config(name)
    width = getattr(config, "hidden_size", None) or sys.maxsize
    stored: torch.dtype = getattr(config, "dtype", None) or torch.float32
    compute = stored if dtype == "stored" else choose_dtype(dtype, device, width)
    how: dict[str, Any] = {"dtype": "auto" if dtype == "stored" else compute}
    if quantize is not None:
        if getattr(config, "quantization_config", None) is not None:
            raise ModelError(f"{name}: its weights are stored quantized already; leave `quantize` out.")
        how |= {"quantization_config": quantization(quantize, compute), "device_map": {"": device}}
    tokenizer = load_tokenizer(name)
    with quiet():
        model, found = _explained(
            name,
            lambda: AutoModelForCausalLM.from_pretrained(
                where,
                use_safetensors=None if allow_pickle else True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **how,
            ),
        )
    _check_complete(name, found)
    model.name_or_path = model.config.name_or_path = name
    if getattr(model, "hf_quantizer", None) is None and not on_host:
        model.to(device)  # Quantized weights were put there as they came.
    spare_odd_shapes(model)
    return BaseModel(name, model.eval(), tokenizer, model.dtype, model.device)


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer of the model `name`, with a padding token even where it declares none.

    Raises:
        ModelError: no such model, or it has no tokenizer.
    """
    where = _resolve(name)
    with quiet():
        tokenizer = _explained(name, lambda: AutoTokenizer.from_pretrained(where))
    if not tokenizer.is_fast:
        raise ModelError(f"{name}: loralab needs a fast tokenizer (a tokenizer.json).")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_config(name: str) -> Any:
    """Return the config of the model `name`, without its weights.

    Raises:
        ModelError: no such model.
    """
    return _explained(name, lambda: AutoConfig.from_pretrained(_resolve(name)))


def weight_bytes(name: str) -> int | None:
    """Return the size of the weight files of the model `name`; None where it does not lie in a folder."""
    folder = Path(_resolve(name))
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")] if folder.is_dir() else []
    return sum(sizes) or None


def _resolve(name: str) -> str:
    if name == DEMO and not Path(name).exists():
        return str(DEMO_BASE)
    if not name:
        raise ModelError("no base model was named; give --model a folder or a hub id.")
    # os.path answers no where Path raises, as for a name that is too long.
    if os.path.isdir(name):
        if not any(Path(name).iterdir()):
            raise ModelError(f"{name}: the folder is empty; --model takes the one with config.json in it.")
        return name
    if os.path.isfile(name):
        raise ModelError(f"{name}: is a file; --model takes the folder with config.json in it.")
    if name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"{name}: no such folder; --model takes a folder, a hub id like 'org/name', or 'demo'."
        )
    if not hub_answers(name, "config.json"):
        raise _nowhere(name, " (the hub could not be reached)")
    return name


def _nowhere(name: str, why: str = "") -> ModelError:
    here = [DEMO, *(path.name for path in Path().iterdir() if path.is_dir())]
    hint = did_you_mean(name, here, _NEAR)
    return ModelError(f"{name}: neither a folder here nor a model on the hub{why}.{hint}")


def _check_folder(where: str, allow_pickle: bool) -> None:
    folder = Path(where)
    if not os.path.isdir(where):
        return
    if not (folder / "config.json").is_file():
        hint = ""
        if (folder / "adapter_config.json").is_file():
            hint = " It holds an adapter: name that with --adapter, and its base with --model."
        raise ModelError(f"{folder}: no config.json there, so it is no base model.{hint}")
    if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")) and not allow_pickle:
        raise ModelError(
            f"{folder}: its weights are a pickle file, which can run any program when it is loaded. "
            "If you trust its author, ask for it by name: --allow-pickle."
        )


def _check_complete(name: str, found: dict[str, Any]) -> None:
    """Refuse weights that transformers would leave at random values, with no more than a notice."""
    missing = sorted(found["missing_keys"])
    faults = [f"{key} is missing" for key in missing] + [
        f"{key} is {list(stored)}, config.json says {list(wanted)}"
        for key, stored, wanted in sorted(found["mismatched_keys"])
    ]
    if faults:
        raise ModelError(
            f"{name}: {len(faults)} of its weights are not as its config.json says: {faults[0]}. "
            "Is the copy complete, and is it a causal language model?"
        )


def _explained(name: str, load: Any) -> Any:
    try:
        return load()
    except SafetensorError as error:
        raise ModelError(
            f"{name}: the weights are damaged or truncated ({error}); copy them again."
        ) from None
    except (UnpicklingError, EOFError):
        raise ModelError(
            f"{name}: the pickle file is damaged, or holds more than tensors, which is never loaded."
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = shorten(str(error), 300, placeholder=" ...")
        offline = (
            " (the hub could not be reached)" if "connect" in str(error) or "offline" in str(error) else ""
        )
        if os.path.isdir(_resolve(name)):
            raise ModelError(f"{name}: cannot be loaded: {reason}") from None
        raise _nowhere(name, offline) from None
