"""Attention over requests in one row is that of each alone, for prompts and for single queries."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from loralab.serving.packed import PACKED, attend


class Kept:
    """A cache that holds the keys and values already."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor, first: torch.Tensor) -> None:
        self.kept, self.first = (key, value), first

    def update(self, key: Any, value: Any, layer: int, kwargs: dict[str, Any]) -> Any:
        kwargs["cu_seq_lens_k"] = self.first
        return self.kept


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("queries", "keys"),
    [((1, 1, 1), (5, 1, 9)), ((4, 1, 7), (4, 6, 12)), ((3,), (3,)), ((1,), (8,)), ((2, 2), (9, 2))],
)
def test_each_request_sees_its_own_keys_alone(dtype, close, groups, queries, keys):
    torch.manual_seed(0)
    heads, width = 4, 16
    query = torch.randn(1, heads, sum(queries), width).to(dtype)
    key, value = (torch.randn(1, groups, sum(keys), width).to(dtype) for _ in range(2))
    first_q, first_k = (torch.tensor([0, *counts]).cumsum(0).to(torch.int32) for counts in (queries, keys))
    cache: Any = Kept(key, value, first_k)
    module: Any = SimpleNamespace(layer_idx=0)
    found, _ = attend(module, query, key, value, None, cache=cache, cu_seq_lens_q=first_q, cu_seq_lens_k={})
    wanted = []
    for n, (many, seen) in enumerate(zip(queries, keys, strict=True)):
        q = query[:, :, first_q[n] : first_q[n + 1]].double()
        k, v = (
            t[:, :, first_k[n] : first_k[n + 1]].double().repeat_interleave(heads // groups, 1)
            for t in (key, value)
        )
        sees = torch.ones(many, seen, dtype=torch.bool).tril(seen - many)
        wanted.append(F.scaled_dot_product_attention(q, k, v, attn_mask=sees))
    expected = torch.cat(wanted, 2).transpose(1, 2)
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected, atol=close, rtol=close)


def test_what_sdpa_has_not_is_refused():
    none: Any = None
    with pytest.raises(ValueError, match="softcap"):
        attend(none, none, none, none, None, cache=Kept(none, none, none), softcap=30.0)  # type: ignore[arg-type]


def test_it_is_used_where_a_model_sees_all_that_went_before(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama, backend="continuous")
    family.tokens(family.ask(engine, "", family.prompt(1, 9)))
    assert engine._base.model.config._attn_implementation == PACKED
    engine.close()
    assert engine._base.model.config._attn_implementation == "sdpa"


def test_it_is_not_used_over_a_window(family: Any, serve: Any) -> None:
    engine = serve(family.relatives["gemma"], backend="continuous")
    family.tokens(family.ask(engine, "", family.prompt(1, 9)))
    assert engine._base.model.config._attn_implementation != PACKED
