"""How transformers finds the places of a stored adapter's tensors in a model with injected layers."""

import importlib
from typing import Any

from loralab.core.config import LoraConfig

__all__ = ["build_peft_weight_mapping"]

_TABLES = r"lora_(?:A|B|embedding_A|embedding_B)"


def build_peft_weight_mapping(
    weight_conversions: list[Any] | None, adapter_name: str, peft_config: LoraConfig | None = None
) -> list[Any]:
    """Return transformers' renamings from an adapter's file to the parameters of a model.

    The file's prefix goes, what renames the base's modules stays, and the adapter's name comes in. A
    magnitude vector, which has no ``.weight`` in files, gets one.
    """
    # Not at the top: to import it takes as long as all the rest.
    WeightRenaming = importlib.import_module("transformers.core_model_loading").WeightRenaming
    renamings = [
        WeightRenaming(r"base_model\.model\.", ""),
        WeightRenaming(rf"({_TABLES})(?=\.|$)", rf"\1.{adapter_name}"),
        WeightRenaming(r"(lora_magnitude_vector)$", rf"\1.{adapter_name}.weight"),
    ]
    kept = [step for step in weight_conversions or () if isinstance(step, WeightRenaming)]
    return [*renamings, *kept]
