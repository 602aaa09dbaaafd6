"""Adapters made of random numbers, with any ranks, scales and kinds of modules."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig

MakeAdapter = Callable[..., Adapter]


def make_adapter(
    shapes: Mapping[str, tuple[int, int]] | None = None,
    seed: int = 0,
    rest: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Adapter:
    """An adapter with random factors for modules of shape (O, I); `settings` go into the config."""
    shapes = shapes or {"layers.0.q_proj": (12, 10), "layers.0.v_proj": (6, 10), "layers.1.q_proj": (12, 10)}
    settings = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": sorted({p.split(".")[-1] for p in shapes}),
        **settings,
    }
    config = LoraConfig(**settings)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for path, (o, i) in shapes.items():
        rank = config.rank_of(path)
        tensors[f"{path}.lora_A.weight"] = torch.randn(rank, i, generator=generator).to(dtype)
        tensors[f"{path}.lora_B.weight"] = torch.randn(o, rank, generator=generator).to(dtype)
    return Adapter(config, tensors | dict(rest or {}))


@pytest.fixture(name="make_adapter")
def make_adapter_fixture() -> MakeAdapter:
    """See `make_adapter`."""
    return make_adapter
