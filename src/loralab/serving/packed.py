"""Attention over requests that lie one behind another in one row, each with its own keys.

transformers' own way on a CPU is one attention of all queries over all keys with a mask, most of which is
masked: with N requests it does N times the work. Here requests that write, with one query each, are one batch
padded to the most keys, and the others, which read their prompts, go one by one.

Shape key: N requests, T queries and K keys of all of them, L keys of the longest, H heads, G heads of keys, D
width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["PACKED", "takes_packed"]

PACKED = "loralab_packed"
"""The name of this attention in transformers."""


def takes_packed(model: Any) -> bool:
    """Return whether a model's attention can be this one: on a CPU, by SDPA, over all that went before."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    plain = not kinds - {"full_attention"} and getattr(config, "sliding_window", None) is None
    is_sdpa: bool = model.config._attn_implementation == "sdpa"
    return is_sdpa and plain and model.device.type == "cpu"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cache: PagedAttentionCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the attention's output [1, T, H, D] for query [1, H, T, D], with the keys and values in `cache`.

    Request n has the queries from ``cu_seq_lens_q[n]`` on, and the keys from ``cu_seq_lens_k[n]`` on; its
    last query sees all its keys. Without a cache it is transformers' SDPA.

    Raises:
        ValueError: the model's attention has something that SDPA has not.
    """
    if cache is None:
        own: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return own
    for extra in ("softcap", "position_bias", "s_aux"):
        if kwargs.get(extra) is not None:
            raise ValueError(f"its attention has {extra}")
    layer: Any = module.layer_idx
    key, value = cache.update(key, value, layer, kwargs)  # which also chooses this layer's keys
    first_q, first_k = kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]
    queries_N, keys_N = first_q.diff(), first_k.diff()
    output_THD = torch.empty_like(query[0].transpose(0, 1))
    one_N = queries_N == 1
    if bool(one_N.any()):
        rows_N = first_q[:-1][one_N].long()
        at_NL, sees_NL = _places(first_k[:-1][one_N].long(), keys_N[one_N].long())
        places = at_NL.flatten()
        key_NGLD, value_NGLD = (
            packed[0].index_select(1, places).unflatten(1, at_NL.shape).transpose(0, 1)
            for packed in (key, value)
        )
        output_THD[rows_N] = _one_query(query[0][:, rows_N], key_NGLD, value_NGLD, sees_NL, scaling)
    for number in (~one_N).nonzero().flatten().tolist():
        here = slice(int(first_q[number]), int(first_q[number + 1]))
        there = slice(int(first_k[number]), int(first_k[number + 1]))
        count, seen = here.stop - here.start, there.stop - there.start
        sees_TK = torch.ones(count, seen, dtype=torch.bool, device=query.device).tril(seen - count)
        found = _sdpa(query[:, :, here], key[:, :, there], value[:, :, there], sees_TK, scaling)
        output_THD[here] = found[0].transpose(0, 1)
    return output_THD.unsqueeze(0), None


def _one_query(
    query_HND: Tensor, key_NGLD: Tensor, value_NGLD: Tensor, sees_NL: Tensor, scaling: float | None
) -> Tensor:
    """Return the output of one query for each request, [N, H, D]."""
    query_NHD = query_HND.transpose(0, 1)
    if query_HND.dtype == torch.float32:
        found = _sdpa(query_NHD.unsqueeze(2), key_NGLD, value_NGLD, sees_NL[:, None, None], scaling)
        return found[:, :, 0]
    # On a CPU, SDPA in 16 bits has twice the time of the products that it is made of.
    scale = query_HND.shape[-1] ** -0.5 if scaling is None else scaling
    query_NGQD = query_NHD.unflatten(1, (key_NGLD.shape[1], -1))
    scores_NGQL = (query_NGQD @ key_NGLD.mT).float() * scale
    chances_NGQL = scores_NGQL.masked_fill_(~sees_NL[:, None, None], float("-inf")).softmax(-1)
    output_NHD: Tensor = (chances_NGQL.to(value_NGLD.dtype) @ value_NGLD).flatten(1, 2)
    return output_NHD


def _places(first_N: Tensor, count_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each request's keys lie, [N, L], and which of these places are its own."""
    steps_L = torch.arange(int(count_N.max()), device=first_N.device)
    sees_NL = steps_L < count_N[:, None]
    return first_N[:, None] + steps_L.where(sees_NL, 0), sees_NL


def _sdpa(query: Tensor, key: Tensor, value: Tensor, sees: Tensor, scaling: float | None) -> Tensor:
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=sees, scale=scaling, enable_gqa=key.shape[1] < query.shape[1]
    )


AttentionInterface.register(PACKED, attend)
