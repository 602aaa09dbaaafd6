"""Small models whose embedding is tied to the output head, or whose layers mix experts."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from loralab.core.config import LoraConfig

IDS = torch.tensor([[5, 9, 2, 31, 7, 1], [8, 8, 3, 0, 12, 30]])
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
_SIZES: dict[str, Any] = {
    **{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.2},
}


def llama(tied: bool = True, **settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**_SIZES, "tie_word_embeddings": tied, **settings})).eval()


def gemma() -> Gemma3ForCausalLM:
    """A tied model whose embedding multiplies its output."""
    torch.manual_seed(0)
    kinds = ["full_attention"] * 2
    return Gemma3ForCausalLM(Gemma3TextConfig(**_SIZES, head_dim=8, pad_token_id=0, layer_types=kinds)).eval()


def mixtral(experts: str = "eager") -> MixtralForCausalLM:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**_SIZES, num_local_experts=3)).eval()
    model.set_experts_implementation(experts)
    return model


def config(*targets: str, **settings: Any) -> LoraConfig:
    """Factors of rank 4, all random, so that an adapter does something from the start."""
    return LoraConfig(**{"r": 4, "init_lora_weights": False, "target_modules": list(targets), **settings})


def small(model: nn.Module) -> None:
    """Give all trainable numbers that an adapter may have a size at which a model stays well-behaved."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def logits_with(base: nn.Module, weights: Mapping[str, Tensor]) -> Tensor:
    """What the base gives with other tensors in the place of its own, tied ones included."""
    return functional_call(base, dict(weights), (), {"input_ids": IDS}).logits


def twin(base: nn.Module) -> nn.Module:
    return copy.deepcopy(base).requires_grad_(False)


def close(first: Tensor, second: Tensor, tolerance: float = 2e-6) -> None:
    assert first.shape == second.shape
    assert (first - second).abs().max() <= tolerance * max(1.0, second.abs().max().item())
