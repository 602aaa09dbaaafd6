"""Attention over documents one behind the other, as a way that transformers' models can be set to."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from loralab.core.attention import BOUNDS, document_attention

__all__ = ["call_from_compiled", "set_document_attention"]

_NAME = "loralab_documents"
_UNKNOWN = ("softcap", "s_aux", "position_bias")


def set_document_attention(model: Any) -> str | None:
    """Let a model whose attention is torch's (sdpa) see documents where it is told their bounds.

    Without them it computes what it did. Returns the name to go back with, by `set_attn_implementation`, or
    None where the model was left as it is. A model may be set twice, as a base is that runs share.
    """
    if getattr(model.config, "_attn_implementation", None) not in ("sdpa", _NAME):
        return None
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)
    return "sdpa"


def call_from_compiled() -> None:
    """Let compiled layers call this attention as it is: compiled, it would be so for every new text."""
    AttentionInterface.register(_NAME, torch.compiler.disable(_attend))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return ([1, T, H, D], None) for queries [1, H, T, D], keys and values [1, G, T, D].

    Raises:
        NotImplementedError: the model's attention has a part that is not known here.
    """
    bounds: Tensor | None = others.get(BOUNDS)
    if bounds is None:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )
        return result
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unknown = [name for name in _UNKNOWN if others.get(name) is not None]
    if unknown or not causal or len(query) != 1 or query.shape[2] != key.shape[2]:
        raise NotImplementedError(f"attention over documents: {', '.join(unknown) or 'not plainly causal'}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out_HTD: Tensor = document_attention(
        query[0],
        key[0],
        value[0],
        bounds,
        scale,
        window=others.get("sliding_window") or 0,
        dropout=dropout,
    )
    return out_HTD.transpose(0, 1)[None], None
