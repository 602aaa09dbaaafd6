"""Whether a stored adapter fits a model: every tensor has its place there, and every place its tensor."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from loralab.core.adapter import Adapter
from loralab.core.plan import Plan
from loralab.core.targets import in_saved, walk
from loralab.errors import AdapterError

__all__ = ["check_fit", "check_tied", "without_copies"]


def check_fit(name: str, adapter: Adapter, expected: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Raise AdapterError unless the adapter has exactly the expected keys and shapes."""
    differing = [
        f"{key} is {list(adapter.tensors[key].shape)}, the model needs {list(shape)}"
        for key, shape in expected.items()
        if key in adapter.tensors and tuple(adapter.tensors[key].shape) != shape
    ]
    missing = [f"{key} is missing from the adapter" for key in expected if key not in adapter.tensors]
    extra = [f"{key} has no place in the model" for key in adapter.tensors if key not in expected]
    faults = differing + missing + extra
    if faults:
        base = adapter.config.base_model_name_or_path
        says = f" It says: {base}." if base else ""
        raise AdapterError(
            f"adapter {name!r} does not fit this {model}: {len(faults)} of {len(expected)} tensors differ. "
            f"{faults[0]}. Was it trained on another base?{says}"
        )


def check_tied(adapter: Adapter, plan: Plan) -> None:
    """Raise AdapterError if modules that are to share a tensor have different ones in the adapter."""
    tensors, source = adapter.tensors, plan.source
    for path in plan.tied:
        pairs = {}
        if path in plan.saved:
            pairs = {f"{path}.weight": tensors[f"{source}.weight"]}
        elif path in plan.layers:
            pairs = {
                f"{path}.lora_A.weight": tensors[f"{source}.lora_embedding_B"].t(),
                f"{path}.lora_B.weight": tensors[f"{source}.lora_embedding_A"].t(),
            }
        for key, theirs in pairs.items():
            if not torch.equal(tensors[key], theirs):
                raise AdapterError(
                    f"{key} is not what {source!r} has; the adapter was not trained with ensure_weight_tying."
                )


def without_copies(adapter: Adapter, model: nn.Module) -> Adapter:
    """Return the adapter without tensors that only repeat the base's weights.

    PEFT writes embeddings and heads beside their adapters, and whole ones that were resized. A whole weight
    that differs from the base's becomes a module of the adapter's own (`modules_to_save`), so the base stays
    as it is. One that differs under factors A and B stays among the tensors, and then has no place.
    """
    if all(".lora_" in key for key in adapter.tensors):
        return adapter
    modules = dict(walk(model))
    kept, own = dict(adapter.tensors), []
    saved = adapter.config.modules_to_save or ()
    tied = {
        id(getattr(module, "weight", None))
        for path, module in modules.items()
        if adapter.config.ensure_weight_tying and in_saved(path, saved)
    }
    for key in adapter.tensors:
        path, _, leaf = key.rpartition(".")
        if leaf != "weight" or ".lora_" in key:
            continue
        copied = path.removesuffix(".base_layer")
        module = modules.get(copied)
        if module is None or in_saved(copied, saved):
            continue
        weight = getattr(module, "weight", None)
        if id(weight) in tied:
            continue
        tensor = adapter.tensors[key]
        if weight is None or not weight.is_floating_point():
            continue
        same = weight.shape == tensor.shape and torch.equal(tensor.to(weight.device, weight.dtype), weight)
        if same:
            del kept[key]
        elif path == copied and weight.shape == tensor.shape:
            own.append(copied)
    config = adapter.config
    if own:
        config = dataclasses.replace(config, modules_to_save=[*saved, *own])
    return Adapter(config, kept)
