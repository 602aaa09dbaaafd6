"""Checkpoints of loralib, the LoRA paper's own package: ``X.lora_A``, ``X.lora_B``, and heads as they are."""

from collections.abc import Collection, Mapping

from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.errors import AdapterError
from loralab.tools.formats._build import Hints, build, sort_keys
from loralab.tools.parts import rest_of

_ENDINGS = {".lora_A": "a", ".lora_B": "b"}


def matches(keys: Collection[str]) -> bool:
    """Some keys end in the bare names of the factors."""
    return any(key.endswith(tuple(_ENDINGS)) for key in keys)


def read(tensors: Mapping[str, Tensor], hints: Hints) -> Adapter:
    """Return the adapter; other tensors (a classifier) become `modules_to_save`. Raises as `build`.

    The whole of a head is saved under its first name, as a script for PEFT would name it: "classifier".
    """
    modules, rest = sort_keys(tensors, _ENDINGS)
    biases = [
        key for key in rest if key.endswith(".bias") and f"{key.removesuffix('.bias')}.lora_A" in tensors
    ]
    if biases:
        raise AdapterError(
            f"{biases[0]}: a trained bias of an adapted module; save the checkpoint without biases."
        )
    adapter = build(modules, rest, hints, "loralib files do not say lora_alpha.")
    heads = sorted({key.partition(".")[0] for key in rest})
    adapted = {path.partition(".")[0] for path in modules}
    adapter.config.modules_to_save = (
        adapter.config.modules_to_save if adapted.intersection(heads) else heads or None
    )
    return adapter


def write(adapter: Adapter) -> dict[str, Tensor]:
    """Return loralib's tensors. Its layers are built with one r and one lora_alpha: those of the config.

    Raises:
        AdapterError: ranks or scales differ between modules, or it has what loralib's linear layers have not.
    """
    config = adapter.config
    if config.rank_pattern or config.alpha_pattern or config.use_rslora:
        raise AdapterError(
            "loralib has one rank and one lora_alpha for all modules, here they differ (or are rsLoRA's); "
            "resize the adapter to one rank first."
        )
    for key, tensor in adapter.tensors.items():
        if ".lora_embedding_" in key or (".lora_" in key and tensor.dim() != 2):
            raise AdapterError(f"{key}: written for loralib are the factors of linear layers only.")
        if key.endswith((".base_layer.bias", ".lora_B.bias", "lora_magnitude_vector")):
            raise AdapterError(f"{key}: loralib has no place for it.")
    factors = {key.removesuffix(".weight"): t for key, t in adapter.tensors.items() if ".lora_" in key}
    return factors | rest_of(adapter)
