"""A LoRA file for llama.cpp, written with the ``gguf`` package."""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.errors import AdapterError, ConfigError
from loralab.files import write_file
from loralab.tools.formats._build import only_factors
from loralab.tools.parts import parts_of

__all__ = ["ARCHITECTURES", "export_gguf"]

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "phi3": "phi3",
    "gpt2": "gpt2",
}
"""transformers' model_type -> llama.cpp's architecture, for those whose weights it takes over as they lie (or
with the rows of q and k in another order, see `_rope_order`)."""


def export_gguf(adapter: Adapter, config: Mapping[str, Any], out: str | Path) -> int:
    """Write `adapter` as a GGUF LoRA file and return the number of modules in it.

    `config` is the base's ``config.json``. llama.cpp scales by alpha / rank; where modules differ in that,
    the scale is multiplied into B and alpha is 0, its sign for a scale of 1.

    Raises:
        ConfigError: the ``gguf`` package is not installed.
        AdapterError: an architecture or a module that llama.cpp has no name for, or more than factors.
    """
    spec = importlib.util.find_spec("gguf")
    if spec is None or spec.origin is None:  # without an origin it is a mere folder of that name
        raise ConfigError("writing GGUF needs the package 'gguf'; install it: pip install gguf.")
    gguf: Any = importlib.import_module("gguf")
    only_factors(adapter, "GGUF")
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise AdapterError(f"no GGUF for a base of type {kind!r} here; known are {', '.join(ARCHITECTURES)}.")
    architecture = ARCHITECTURES[kind]
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    blocks = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    known = gguf.get_tensor_name_map(number, blocks)
    parts = parts_of(adapter, "export it")
    scales = {part.factors.scaling * part.factors.rank for part in parts.values()}
    alpha = scales.pop() if len(scales) == 1 else 0.0
    tensors: dict[str, Tensor] = {}
    for path, part in parts.items():
        name = known.get_name(f"{path}.weight", try_suffixes=(".weight",))
        if name is None or part.place.kernel:
            raise AdapterError(f"{path}: llama.cpp's {architecture} has no tensor for it.")
        b_OR = part.factors.b_OR.float() * (1.0 if alpha else part.factors.scaling)
        if architecture == "llama":
            b_OR = _rope_order(path, b_OR, config)
        tensors |= {f"{name}.lora_a": part.factors.a_RI.float(), f"{name}.lora_b": b_OR}
    write_file(Path(out), lambda file: _write(gguf, file, architecture, alpha, tensors))
    return len(parts)


def _write(gguf: Any, file: Path, architecture: str, alpha: float, tensors: Mapping[str, Tensor]) -> None:
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.detach().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rope_order(path: str, b_OR: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Return B with the rows of q and k in llama.cpp's order for rotary embeddings.

    transformers rotates row i of a head with row i + D/2, llama.cpp row 2i with 2i + 1.
    """
    leaf = path.rpartition(".")[2]
    if leaf not in ("q_proj", "k_proj"):
        return b_OR
    heads = int(config["num_attention_heads"])
    if leaf == "k_proj":
        heads = int(config.get("num_key_value_heads") or heads)
    halves = b_OR.view(heads, 2, b_OR.shape[0] // heads // 2, b_OR.shape[1])
    return torch.swapaxes(halves, 1, 2).reshape(b_OR.shape)
