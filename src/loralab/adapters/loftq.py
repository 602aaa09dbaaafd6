"""LoftQ for a model that was loaded quantized: factors that make up for what the rounding took."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loralab.core.layers import LoraLayer
from loralab.core.layers.quantized import QuantizedLinear
from loralab.core.model import LoraModel
from loralab.core.svd import exact_svd
from loralab.errors import AdapterError, ConfigError, ModelError

__all__ = ["replace_lora_weights_loftq"]

_FILE = "model.safetensors"


@torch.no_grad()
def replace_lora_weights_loftq(
    peft_model: Any,
    model_path: str | Path | None = None,
    adapter_name: str = "default",
    callback: Callable[[Any, str], bool] | None = None,
) -> None:
    """Set the factors of an adapter on quantized layers to the best of their rank for what was rounded away.

    That is one turn of LoftQ (Li et al. 2023, arXiv 2310.08659, algorithm 1) over a base whose quantization
    is given: scaling * B A is W - Q cut to the rank. W is read layer by layer from the safetensors of
    `model_path`, a file or folder; by default from where the base says that it comes from.
    ``callback(model, path)`` is called after each layer; if it returns False the layer gets its factors back.

    Raises:
        ConfigError: there is no such adapter, or it lies on no quantized layer.
        ModelError: the weights cannot be found or do not fit.
    """
    lora: LoraModel = peft_model.base_model
    layers = {path: layer for path, layer in lora.lora_layers.items() if adapter_name in layer.adapters}
    rounded = {path: layer for path, layer in layers.items() if isinstance(layer, QuantizedLinear)}
    if not rounded:
        raise ConfigError(
            f"adapter {adapter_name!r} lies on no quantized layer; load the base in 4 bits, or use "
            "init_lora_weights='loftq' on the full weights."
        )
    base = lora.model
    prefix = getattr(base, "base_model_prefix", None) or ""
    weights = _Weights(_folder(base, model_path), prefix)
    for path, layer in rounded.items():
        factors = layer.factors(adapter_name)
        before = [factor.clone() for factor in factors]
        _fit(layer, adapter_name, weights.read(f"{path}.weight"), path)
        if callback is not None and not callback(peft_model, path):
            for factor, old in zip(factors, before, strict=True):
                factor.copy_(old)


def _fit(layer: LoraLayer, name: str, full: Tensor, path: str) -> None:
    kept = layer.dense_weight().to(torch.float32)
    full = full.to(kept)
    # GPT-2's files keep their linear weights the other way round.
    ways = [way for way in (full, full.t()) if way.shape == kept.shape] if full.dim() == 2 else []
    if not ways:
        raise ModelError(f"{path!r} is {list(full.shape)} in the file and {list(kept.shape)} in the model.")
    lost = min((way - kept for way in ways), key=lambda rest: float(rest.norm()))
    a_RI, b_OR = layer.matrices(name)
    if a_RI.shape[0] > min(lost.shape):
        raise AdapterError(f"{path!r}: rank {a_RI.shape[0]} exceeds the smaller side of the weight.")
    root = math.sqrt(layer.scaling[name])
    best = exact_svd(layer.matrix(lost)).cut(a_RI.shape[0])
    for own, found in zip((a_RI, b_OR), best.factors(), strict=True):
        own.copy_(found / root)


class _Weights:
    """The tensors of a base model's safetensors, in one file or many, read one at a time."""

    def __init__(self, path: Path, prefix: str) -> None:
        self._prefix = prefix
        self._single = path if path.is_file() else path / _FILE
        self._folder = self._single.parent
        self._files: dict[str, str] = {}
        index = self._folder / f"{_FILE}.index.json"
        if self._single.is_file():
            return
        if not index.is_file():
            raise ModelError(
                f"{self._folder}: neither {_FILE} nor {index.name} there; expected the full weights."
            )
        try:
            self._files = json.loads(index.read_text(encoding="utf8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{index}: damaged ({error!r}).") from None

    def read(self, key: str) -> Tensor:
        """Return a tensor; some files leave out the name of the base within the model."""
        keys = (key, key.removeprefix(f"{self._prefix}."))
        for name in dict.fromkeys(keys):
            file = self._folder / self._files[name] if name in self._files else self._single
            if not file.is_file():
                continue
            try:
                with safe_open(file, framework="pt") as tensors:
                    if name in tensors.keys():  # noqa: SIM118
                        found: Tensor = tensors.get_tensor(name)
                        return found
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{file}: not a complete safetensors file ({error}).") from None
        raise ModelError(f"{self._folder}: the files hold no {key!r}; are they those of this base?")


def _folder(base: Any, path: str | Path | None) -> Path:
    name = str(path or getattr(base, "name_or_path", "") or "")
    if not name:
        raise ConfigError("the base does not say where it comes from; pass model_path.")
    if Path(name).exists():
        return Path(name)
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        raise ModelError(f"{name!r} is neither a folder nor in the hub's cache; pass model_path.") from None
