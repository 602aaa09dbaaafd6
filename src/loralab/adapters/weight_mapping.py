"""How transformers finds the places of a stored adapter's tensors in a model with injected layers."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from loralab.adapters.moe_conversion import PARAMETERS
from loralab.adapters.moe_factors import stacked_a, stacked_b
from loralab.core.config import LoraConfig

__all__ = ["build_peft_weight_mapping"]

_TABLES = r"lora_(?:A|B|embedding_A|embedding_B)"


class StackFactors:
    """One of transformers' conversions: the factors of single experts to those of a parameter."""

    supports_many_to_many = False

    def __init__(self, side: str) -> None:
        self.join = stacked_a if side == "A" else stacked_b

    def convert(
        self,
        input_dict: Mapping[str, Sequence[Tensor]],
        source_patterns: Sequence[str],
        full_layer_name: str,
        **others: Any,
    ) -> dict[str, Tensor]:
        """Return the one tensor. The experts of a pattern are given in their order."""
        given = [input_dict[pattern] for pattern in source_patterns]
        return {full_layer_name: self.join([torch.stack(list(experts)) for experts in given])}


def build_peft_weight_mapping(
    weight_conversions: list[Any] | None, adapter_name: str, peft_config: LoraConfig | None = None
) -> list[Any]:
    """Return transformers' conversions from an adapter's file to the parameters of a model.

    The file's prefix goes, what renames the base's modules stays, and the adapter's name comes in. A
    magnitude vector, which has no ``.weight`` in files, gets one. Factors of single experts are stacked.
    """
    # Not at the top: to import it takes as long as all the rest.
    loading = importlib.import_module("transformers.core_model_loading")
    WeightRenaming = loading.WeightRenaming
    renamings = [
        WeightRenaming(r"base_model\.model\.", ""),
        WeightRenaming(rf"({_TABLES})(?=\.|$)", rf"\1.{adapter_name}"),
        WeightRenaming(r"(lora_magnitude_vector)$", rf"\1.{adapter_name}.weight"),
    ]
    steps = weight_conversions or ()
    kept = [step for step in steps if isinstance(step, WeightRenaming)]
    stacks = {
        parameter: step
        for step in steps
        for parameter in PARAMETERS
        if hasattr(step, "operations") and step.target_patterns[0].endswith(f".experts.{parameter}")
    }
    inner = PARAMETERS[0] if _has_both(stacks, peft_config) else None
    stacked = [
        loading.WeightConverter(
            [f"{source.rpartition('.')[0]}.lora_{side}.*" for source in step.source_patterns],
            [_target(step.target_patterns[0], parameter == inner, f"lora_{side}.{adapter_name}.weight")],
            [StackFactors(side)],
        )
        for parameter, step in stacks.items()
        for side in "AB"
    ]
    return [*renamings, *kept, *stacked]


def _has_both(stacks: Mapping[str, Any], config: LoraConfig | None) -> bool:
    """Return whether an adapter changes both parameters, so that one layer is inside the other."""
    names = getattr(config, "target_modules", None)
    if isinstance(names, str) or not names or PARAMETERS[1] not in stacks:
        return True
    down = {source.split(".")[-2] for source in stacks[PARAMETERS[1]].source_patterns}
    return any(name.rpartition(".")[2] in down for name in names)


def _target(parameter: str, inside: bool, factor: str) -> str:
    experts = parameter.rpartition(".")[0]
    return f"{experts}.base_layer.{factor}" if inside else f"{experts}.{factor}"
