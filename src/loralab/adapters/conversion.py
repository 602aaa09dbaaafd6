"""An adapter of a model as a plain LoRA of another rank, in PEFT's words."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loralab.adapters.functional import adapted, check_known
from loralab.adapters.peft_format import PREFIX, own_keys, write_adapter
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.derived import explicit_targets, with_scales
from loralab.core.layers import LoraLayer
from loralab.core.layers.linear import LinearLike
from loralab.core.svd import Cut, LowRank, leading_svd, product_svd
from loralab.errors import AdapterError, ConfigError

__all__ = ["convert_to_lora", "save_as_lora"]


def convert_to_lora(
    model: nn.Module,
    rank: float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: Any = None,
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Return the config and the tensors of a plain LoRA that is nearest to an adapter, at another rank.

    A whole `rank` is one for all modules; a fraction is the share of each delta's energy to keep. DoRA is
    converted as what it adds to the weight now. Scalings become 1. `progressbar` and `compile_kwargs` are
    there for PEFT's sake: without them it takes seconds.

    Raises:
        ConfigError: `rank` is no rank and no share.
        AdapterError: there is no such adapter, or it changes modules that are not linear, or trains others
            in full.
    """
    if isinstance(rank, bool) or not ((isinstance(rank, int) and rank > 0) or 0 < rank <= 1):
        raise ConfigError(f"rank is {rank!r}; expected a whole number of at least 1, or a share up to 1.0.")
    cut = Cut(r=rank) if isinstance(rank, int) else Cut(energy=rank)
    lora = adapted(model)
    check_known(lora, adapter_name)
    layers = {place: x for place, x in lora.lora_layers.items() if adapter_name in x.adapters}
    factors = {f"{place}.{key}" for place, x in layers.items() for key in x.tensors(adapter_name)}
    others = [key for key in lora.adapter(adapter_name).tensors if key not in factors]
    odd = [place for place, x in layers.items() if not isinstance(x, LinearLike) or x.weight.dim() != 2]
    if odd or others:
        raise AdapterError(f"{(odd + others)[0]}: only the deltas of linear layers can be converted.")
    tensors: dict[str, Tensor] = {}
    scales: dict[str, tuple[int, float]] = {}
    for place, layer in layers.items():
        spectrum = _spectrum(layer, adapter_name, cut)
        kept = spectrum.cut(max(1, cut.rank(spectrum)))
        a_RI, b_OR = kept.factors()
        dtype = layer.factors(adapter_name)[0].dtype
        start = f"{'' if lora.model is model else PREFIX}{place}"
        tensors[f"{start}.lora_A.weight"] = a_RI.to(dtype).contiguous()
        tensors[f"{start}.lora_B.weight"] = b_OR.to(dtype).contiguous()
        scales[layer.path] = (a_RI.shape[0], float(a_RI.shape[0]))
    old = lora.peft_config[adapter_name]
    plain = LoraConfig(
        task_type=old.task_type,
        auto_mapping=old.auto_mapping,
        base_model_name_or_path=old.base_model_name_or_path,
        revision=old.revision,
        fan_in_fan_out=old.fan_in_fan_out,
    )
    plain = dataclasses.replace(plain, **explicit_targets(scales))  # type: ignore[arg-type]
    return with_scales(plain, scales), tensors


def save_as_lora(
    path: str | Path,
    model: nn.Module,
    rank: float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: Any = None,
) -> None:
    """Write what `convert_to_lora` returns into a folder; raises as it does."""
    config, tensors = convert_to_lora(model, rank, adapter_name, progressbar, compile_kwargs)
    write_adapter(Adapter(config, own_keys(tensors)), path)


@torch.no_grad()
def _spectrum(layer: LoraLayer, name: str, cut: Cut) -> LowRank:
    if layer.variants[name] == "plain":
        a_RI, b_OR = layer.factors(name)
        return product_svd(a_RI, b_OR, float(layer.scaling[name]))
    return leading_svd(layer.matrix(layer.delta(name)), cut)
