"""Adapters of a model on their way into files."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from loralab.adapters.peft_format import read_adapter
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.peft_config import FORMAT_VERSION
from loralab.errors import AdapterError
from loralab.files import write_text

__all__ = ["for_original_base", "write_card"]

_SIDES = (".lora_A.weight", ".lora_embedding_A", ".lora_B.weight", ".lora_embedding_B", ".lora_B.bias")


def for_original_base(adapter: Adapter, start: str | Path) -> Adapter:
    """Return an adapter for the base as it was before an initialisation changed it (PiSSA and the like).

    `start` is the folder in which the adapter was saved before training. The trained adapter stands on
    W - s B0 A0, so on W the delta is s (B A - B0 A0) = s [B, -B0] [A; A0], of twice the rank.

    Raises:
        AdapterError: the two do not belong together, or the delta is no difference of products (DoRA).
    """
    config = adapter.config
    if config.use_dora:
        raise AdapterError(
            f"{start}: with use_dora the change is no low-rank sum; save it with its own base."
        )
    first = read_adapter(start)
    same = adapter.tensors.keys() == first.tensors.keys() and config.r == first.config.r
    if not same:
        raise AdapterError(f"{start}: not the start of this adapter; its modules or its rank differ.")
    tensors = dict(adapter.tensors)
    for key, new in adapter.tensors.items():
        old = first.tensors[key].to(new.device, new.dtype)
        if key.endswith(_SIDES[:2]):
            tensors[key] = torch.cat([new, old])
        elif key.endswith(_SIDES[2:4]):
            tensors[key] = torch.cat([new, -old], dim=1)
        elif key.endswith(_SIDES[4]):
            tensors[key] = new - old
    return Adapter(_doubled(config), tensors)


def _doubled(config: LoraConfig) -> LoraConfig:
    """Return the config with every rank doubled and every scale as it was."""
    factor = math.sqrt(2) if config.use_rslora else 2
    return dataclasses.replace(
        config,
        init_lora_weights=True,
        r=2 * config.r,
        lora_alpha=factor * config.lora_alpha,
        rank_pattern={key: 2 * rank for key, rank in config.rank_pattern.items()},
        alpha_pattern={key: factor * alpha for key, alpha in config.alpha_pattern.items()},
    )


def write_card(folder: Path, config: LoraConfig, task: str | None) -> None:
    """Write ``README.md`` with what the hub wants to know of an adapter; one that is there stays.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    path = folder / "README.md"
    if path.exists():
        return
    base = config.base_model_name_or_path
    tags = ["lora", "loralab", "transformers", *([f"base_model:adapter:{base}"] if base else [])]
    fields: list[tuple[str, Any]] = [("base_model", base), ("library_name", "peft")]
    fields += [("pipeline_tag", "text-generation" if task == "CAUSAL_LM" else None)]
    header = [f"{name}: {value}" for name, value in fields if value]
    lines = ["---", *header, "tags:", *(f"- {tag}" for tag in sorted(tags)), "---", ""]
    lines += [f"A LoRA adapter of rank {config.r}{f' for {base}' if base else ''}.", ""]
    lines += ["### Framework versions", "", f"- PEFT {FORMAT_VERSION}", ""]
    write_text(path, "\n".join(lines))
