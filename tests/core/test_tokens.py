"""`trainable_token_indices`: single rows of an embedding, and of a head that shares its weight."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralab.core.model import LoraModel
from loralab.errors import AdapterError, ConfigError, TargetError

from .models import EMBEDDING, HEAD, IDS, close, config, gemma, llama, logits, logits_with, twin

TOKENS = [31, 2, 8]
LOOSE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 0.05, torch.float16: 0.01}
ROWS = f"{EMBEDDING}.token_adapter.trainable_tokens_delta"
LLAMA, GEMMA = pytest.param(llama, id="llama"), pytest.param(gemma, id="gemma")


def rows_of(model: LoraModel, name: str = "default", path: str = EMBEDDING) -> nn.Parameter:
    return model.wrappers[path].token_adapter.rows(name)


def grow(model: LoraModel, name: str = "default", seed: int = 2) -> None:
    """Give the rows of an adapter values far from the base's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for wrapper in model.wrappers.values():
            if wrapper.tensors(name):
                rows = wrapper.token_adapter.rows(name)
                rows.copy_(torch.randn(rows.shape, generator=generator) * 0.5)


def adapted(base: nn.Module, tokens: Any = TOKENS, *targets: str, **settings: Any) -> LoraModel:
    model = LoraModel(base, config(*targets, trainable_token_indices=tokens, **settings)).eval()
    grow(model)
    return model


def replaced(base: nn.Module, tokens: list[int], rows: Tensor, path: str = EMBEDDING) -> Tensor:
    """The base's weight with these rows in it."""
    return base.get_submodule(path).weight.detach().index_copy(0, torch.tensor(tokens), rows.to(base.dtype))


@pytest.mark.parametrize("make", [LLAMA, GEMMA])
def test_rows_are_replaced_in_the_embedding_and_in_the_head_tied_to_it(make: Callable[[], nn.Module]) -> None:
    base = twin(make())
    model = adapted(make())
    assert (logits(model) - logits(base)).abs().max() > 0.05
    wanted = logits_with(base, {f"{EMBEDDING}.weight": replaced(base, TOKENS, rows_of(model))})
    close(logits(model), wanted)
    model.disable_adapter_layers()
    close(logits(model), logits(base), 0)


@pytest.mark.parametrize("make", [LLAMA, GEMMA])
def test_gradients_come_from_both_places(make: Callable[[], nn.Module]) -> None:
    base, model = twin(make()), adapted(make())
    logits(model).square().sum().backward()
    weight = replaced(base, TOKENS, rows_of(model).detach()).requires_grad_(True)
    logits_with(base, {f"{EMBEDDING}.weight": weight}).square().sum().backward()
    close(rows_of(model).grad / weight.grad.abs().max(), weight.grad[TOKENS] / weight.grad.abs().max())
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {f"model.{ROWS}.default"}


def test_fresh_rows_are_the_bases_own() -> None:
    base = llama()
    before = logits(base.requires_grad_(False))
    model = LoraModel(base, config(trainable_token_indices=TOKENS))
    close(logits(model), before)
    assert torch.equal(rows_of(model), llama().get_input_embeddings().weight[TOKENS])
    assert list(model.adapter("default").tensors) == [ROWS]


def test_lists_by_module() -> None:
    base = twin(llama())
    model = adapted(llama(), {"embed_tokens": [1, 9], "lm_head": [30]})
    weights = {
        f"{EMBEDDING}.weight": replaced(base, [1, 9], rows_of(model)),
        f"{HEAD}.weight": replaced(base, [30], rows_of(model, path=HEAD), HEAD),
    }
    untied = twin(llama(tied=False))
    untied.load_state_dict(base.state_dict() | weights)
    close(logits(model), logits(untied))
    model.merge_adapter()
    close(logits(model), logits(untied))
    plain = model.merge_and_unload()
    assert not plain.config.tie_word_embeddings
    close(logits(plain), logits(untied))


def test_one_list_for_the_embedding_by_name_is_followed_by_the_head() -> None:
    model = adapted(llama(), {"embed_tokens": TOKENS})
    other = adapted(llama(), {"embed_tokens": TOKENS, "lm_head": TOKENS})
    assert list(other.adapter("default").tensors) == list(model.adapter("default").tensors) == [ROWS]
    close(logits(model), logits(adapted(llama())), 0)
    close(logits(other), logits(model), 0)


@pytest.mark.parametrize("make", [LLAMA, GEMMA])
def test_merged_and_back(make: Callable[[], nn.Module], dtype: Any) -> None:
    base = make().to(dtype)
    model = adapted(base, TOKENS, "q_proj")
    with torch.no_grad():
        rows_of(model).copy_(rows_of(model).to(dtype))  # what the base can hold
    before = {key: value.clone() for key, value in base.state_dict().items()}
    out = logits(model)
    report = model.merge_adapter()
    assert report.layers[EMBEDDING].missed == 0
    close(logits(model).float(), out.float(), LOOSE[dtype])
    merged = [base.get_submodule(path).original_module.weight for path in (EMBEDDING, HEAD)]
    assert merged[0] is merged[1]
    model.unmerge_adapter()
    assert torch.equal(logits(model), out)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    plain = model.merge_and_unload()
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert plain.config.tie_word_embeddings
    close(logits(plain).float(), out.float(), LOOSE[dtype])


def test_a_sum_kept_in_fp32_runs_in_a_bf16_model() -> None:
    model = adapted(llama().bfloat16(), TOKENS, "q_proj")
    out = logits(model)
    model.merge_adapter(rounding="float32")
    close(logits(model).float(), out.float(), 0.05)
    embedding = model.model.get_input_embeddings()
    assert embedding.original_module.weight.dtype == torch.float32
    assert torch.equal(embedding.original_module.weight[TOKENS], rows_of(model))
    model.unmerge_adapter()
    assert torch.equal(logits(model), out)


def two(second: Any) -> LoraModel:
    model = adapted(llama())
    torch.manual_seed(4)
    model.attach("second", config("q_proj", trainable_token_indices=second))
    grow(model, "second", 3)
    return model


def test_adapters_with_other_tokens_run_together_and_merge_together() -> None:
    model, base = two([4, 0]), twin(llama())
    model.set_adapter(["default", "second"])
    model.detach("second")
    alone = logits(model)
    close(alone, logits(adapted(llama())), 0)
    model = two([4, 0])
    model.set_adapter(["default", "second"])
    together = logits(model)
    both = replaced(base, [*TOKENS, 4, 0], torch.cat([rows_of(model), rows_of(model, "second")]))
    model.merge_adapter()
    assert torch.equal(model.model.get_input_embeddings().original_module.weight, both)
    close(logits(model), together)
    model.swap_adapter("second")
    model.set_adapter("default")
    close(logits(model), together)
    assert (together - alone).abs().max() > 0.05


def test_two_adapters_cannot_run_the_same_token_at_once() -> None:
    model = two([8, 4])
    with pytest.raises(AdapterError, match="'default' and 'second' both train token 8"):
        model.set_adapter(["default", "second"])
    assert model.active_adapters == ["default"]
    before = logits(model)
    with pytest.raises(AdapterError, match="'default' and 'second' both train token 8"):
        model.merge_adapter(["default", "second"])
    assert model.merged_adapters == []
    close(logits(model), before, 0)
    model.set_adapter("second")
    assert (logits(model) - before).abs().max() > 0.05


@pytest.mark.parametrize("merged", [["default"], ["default", "second"]])
def test_a_merged_adapter_that_is_deleted_leaves_nothing(merged: list[str]) -> None:
    model = two([4, 0])
    model.merge_adapter(merged)
    model.detach("default")
    assert model.merged_adapters == merged[1:]
    model.set_adapter("second")
    with_second = two([4, 0])
    with_second.set_adapter("second")
    close(logits(model), logits(with_second))
    model.unmerge_adapter()
    model.detach("second")
    close(logits(model), logits(llama()), 0)


def test_a_batch_of_several_adapters_gives_each_row_its_tokens() -> None:
    model = adapted(llama())
    model.attach("other", config("q_proj"))
    alone = logits(model)
    with model.rows(["default", "other"]):
        mixed = logits(model)
    close(mixed[0], alone[0])
    model.set_adapter("other")
    close(mixed[1], logits(model)[1])
    with model.rows(["__base__", "default"]):
        mixed = logits(model)
    close(mixed[0], logits(llama())[0])
    close(mixed[1], alone[1])


def test_one_head_follows_the_embedding_or_has_its_own_tokens() -> None:
    follows, apart = TOKENS, {"embed_tokens": [1], "lm_head": [3]}
    for first, second in [(follows, apart), (apart, follows)]:
        model = adapted(llama(), first)
        with pytest.raises(TargetError, match="'lm_head' has the embedding's tokens, for another tokens of"):
            model.attach("second", config(trainable_token_indices=second))
        assert list(model.peft_config) == ["default"]


def test_rows_stay_right_over_an_embedding_that_was_resized() -> None:
    base = llama()
    torch.manual_seed(6)
    base.resize_token_embeddings(40, mean_resizing=False)
    tokens = [2, 33, 39]
    adapter = adapted(base, tokens).adapter("default")
    again = llama()
    torch.manual_seed(99)  # the new rows come out otherwise
    again.resize_token_embeddings(40, mean_resizing=False)
    model = LoraModel(again, adapter.config, "default", adapter)
    weight = model.model.get_input_embeddings().weight
    assert torch.equal(weight[tokens], adapter.tensors[ROWS])
    assert torch.equal(model.model.lm_head.weight[tokens], adapter.tensors[ROWS])
    assert model.merge_and_unload().lm_head.weight.shape == (40, 16)


@pytest.mark.parametrize(
    ("tokens", "error", "fault"),
    [
        ([1, 32], ConfigError, "32 is not one of 0 to 31"),
        ([-1], ConfigError, "-1 is not one of 0 to 31"),
        ([1, 1], ConfigError, "expected distinct tokens"),
        ([1.0], ConfigError, "1.0 is not one of"),
        ([True], ConfigError, "True is not one of"),
        ({"embed_token": [1]}, TargetError, "'embed_token' matches no module. Did you mean 'embed_tokens'"),
        ({"norm": [1]}, TargetError, "a LlamaRMSNorm has no rows of tokens"),
        ("1,2", ConfigError, "expected token ids, or such a list by module name"),
    ],
)
def test_what_is_refused(tokens: Any, error: type[Exception], fault: str) -> None:
    with pytest.raises(error, match=fault) as caught:
        LoraModel(llama(), config(trainable_token_indices=tokens))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "other", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}]
)
def test_one_module_is_changed_in_one_way(other: dict[str, Any]) -> None:
    with pytest.raises(TargetError, match=r"'model\.embed_tokens' is adapted or trained in full"):
        LoraModel(llama(), config(trainable_token_indices=[1], **other))


def test_models_read_sizes_off_the_embedding() -> None:
    model = adapted(llama())
    embedding = model.model.get_input_embeddings()
    assert (embedding.embedding_dim, embedding.num_embeddings, embedding.padding_idx) == (16, 32, None)
    assert model.model.lm_head.bias is None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = embedding.nothing_of_the_kind
    other = copy.deepcopy(model)
    close(logits(other), logits(model), 0)
    assert other.wrappers[HEAD].token_adapter.tied_adapter is other.wrappers[EMBEDDING].token_adapter


def test_training_moves_the_chosen_rows_only() -> None:
    model = adapted(llama())
    before = model.model.get_input_embeddings().weight.detach().clone()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    model.train()
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.model.get_input_embeddings().weight
    changed = (after != before).any(1).nonzero().flatten().tolist()
    assert changed == sorted(TOKENS)
    assert torch.equal(model.model.lm_head.weight, after)
