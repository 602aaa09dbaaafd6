"""Packed examples do not see each other: on six architectures, by other means than the self-test's own."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

from loralab.adapters import get_peft_model
from loralab.core.config import LoraConfig
from loralab.data.batch import Isolation, collate
from loralab.data.types import Example
from loralab.errors import TrainingError
from loralab.models.attention import set_document_attention
from loralab.training.isolation import find_isolation
from loralab.training.tasks.causal_lm import CausalLM

CPU = torch.device("cpu")
VOCABULARY = 60
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = SHAPE | {"intermediate_size": 32, "num_key_value_heads": 1, "initializer_range": 0.3}
WINDOW = {"head_dim": 8, "sliding_window": 5}
CONFIGS: dict[str, tuple[PretrainedConfig, Isolation]] = {
    "llama": (LlamaConfig(**LLAMA), "documents"),
    "qwen2": (Qwen2Config(**LLAMA), "documents"),
    "gpt2": (GPT2Config(**SHAPE, initializer_range=0.3), "documents"),
    "gpt_neox": (GPTNeoXConfig(**SHAPE, intermediate_size=32, initializer_range=0.3), "documents"),
    "gemma2": (Gemma2Config(**LLAMA, **WINDOW), "positions"),
    "opt": (OPTConfig(**SHAPE, ffn_dim=32, word_embed_proj_dim=16, init_std=0.3, dropout=0.0), "documents"),
}
DTYPES = [torch.float32, torch.bfloat16]


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name][0]), dtype=dtype).eval()


def examples(lengths: list[int], seed: int = 0) -> list[Example]:
    """Random examples, about half of whose tokens are trained."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        weights = torch.randint(0, 2, (length,), generator=generator).float()
        weights[0], weights[-1] = 0.0, 1.0
        made.append(Example(tuple(ids), tuple(weights.tolist())))
    return made


def scores(model: nn.Module, batch: list[Example], isolation: Isolation, dtype: torch.dtype) -> list[Tensor]:
    """The logits of each example of a batch, found by its document number."""
    packed = collate(batch, 0, isolation)
    with torch.no_grad():
        logits = model(**packed.model_inputs(isolation, dtype), use_cache=False).logits.float()
    found: list[Tensor] = []
    for example in batch:
        for row, document in {tuple(place) for place in packed_places(packed.documents_BT)}:
            here = packed.documents_BT[row] == document
            if tuple(packed.input_ids_BT[row][here].tolist()) == example.ids:
                found.append(logits[row][here])
                break
    assert len(found) == len(batch)
    return found


def packed_places(documents_BT: Tensor) -> list[list[int]]:
    return [[row, int(d)] for row, line in enumerate(documents_BT) for d in line.unique() if d >= 0]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_each_architecture_gets(name):
    assert find_isolation(build(name), VOCABULARY, CPU, torch.float32) == CONFIGS[name][1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_no_example_changes_another_or_differs_from_itself_alone(name, dtype):
    model = build(name, dtype)
    isolation = find_isolation(model, VOCABULARY, CPU, dtype)
    batch = examples([9, 20, 4, 7, 13, 2, 20])
    other = [
        one if index == 3 else new
        for index, (one, new) in enumerate(
            zip(batch, examples([9, 20, 4, 7, 13, 2, 20], seed=1), strict=True)
        )
    ]
    here, there = scores(model, batch, isolation, dtype)[3], scores(model, other, isolation, dtype)[3]
    assert torch.equal(here, there)
    for example, packed in zip(batch, scores(model, batch, isolation, dtype), strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([example.ids])).logits[0].float()
        torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.15)


def test_the_check_above_sees_a_leak():
    model = build("opt")
    batch = examples([9, 20, 4, 7])
    other = [*examples([9, 20, 4], seed=1), batch[3]]
    leaks = [
        not torch.equal(
            scores(model, batch, isolation, torch.float32)[3],
            scores(model, other, isolation, torch.float32)[3],
        )
        for isolation in ("positions", "mask", "rows")
    ]
    assert leaks == [True, False, False]


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_loss_and_gradient_are_those_of_one_row_an_example(name):
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(build(name), config).eval()
    isolation = find_isolation(model, VOCABULARY, CPU, torch.float32)
    batch = examples([3, 24, 11, 8, 17, 5])

    def measure(groups: list[list[Example]], how: Isolation) -> tuple[float, dict[str, Tensor]]:
        task = CausalLM(0, how, CPU, torch.float32)
        model.zero_grad()
        total = sum(task.loss(model, group) for group in groups)
        total.backward()
        return float(total.detach()), {
            n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad
        }

    loss, gradient = measure([batch], isolation)
    expected_loss, expected = measure([[example] for example in batch], "rows")
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert gradient.keys() == expected.keys()
    assert len(gradient) >= 8
    for key, value in expected.items():
        assert value.any(), key
        torch.testing.assert_close(gradient[key], value, rtol=1e-4, atol=1e-4 * float(value.abs().max()))


WITH_OTHER_ATTENTION = [name for name, (_, isolation) in CONFIGS.items() if isolation == "documents"]


@pytest.mark.parametrize("name", WITH_OTHER_ATTENTION)
def test_scores_of_the_attention_set_are_those_of_the_one_before(name):
    model = build(name)
    batch = examples([9, 20, 4, 7])
    expected = scores(model, batch, "rows", torch.float32)
    assert set_document_attention(model) == "sdpa"
    assert set_document_attention(model) == "sdpa", "a base that runs share is set again"
    for isolation in ("documents", "rows"):
        for ours, theirs in zip(scores(model, batch, isolation, torch.float32), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_window_is_kept_to():
    model = AutoModelForCausalLM.from_config(MistralConfig(**LLAMA, sliding_window=5)).eval()
    batch = examples([9, 20, 4])
    expected = scores(model, batch, "rows", torch.float32)
    model.config.sliding_window = None
    everything = scores(model, batch, "rows", torch.float32)
    assert not torch.allclose(expected[1], everything[1], atol=1e-3), "the window is felt"
    model.config.sliding_window = 5
    set_document_attention(model)
    for ours, theirs in zip(scores(model, batch, "documents", torch.float32), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_text_is_generated_as_before():
    model = build("llama")
    ids = torch.arange(3, 12)[None]
    expected = model.generate(ids, max_new_tokens=8, do_sample=False)
    set_document_attention(model)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), expected)


def test_no_other_attention_than_sdpa_is_replaced():
    model = build("llama")
    model.set_attn_implementation("eager")
    assert set_document_attention(model) is None


def test_a_base_that_is_tried_twice_keeps_its_isolation():
    model = build("llama")
    found = [find_isolation(model, VOCABULARY, CPU, torch.float32) for _ in range(2)]
    assert found == ["documents", "documents"]


def test_limits_that_the_trial_cannot_show_are_read_from_the_config():
    model = NeedsTheMask(copy.deepcopy(LlamaConfig(**LLAMA))).eval()
    model.set_attn_implementation("eager")
    model.config.sliding_window = 128
    assert find_isolation(model, VOCABULARY, CPU, torch.float32) == "rows"
    model = build("llama")
    model.config.attention_chunk_size = 64
    assert find_isolation(model, VOCABULARY, CPU, torch.float32) == "rows"


class Leaky(LlamaForCausalLM):
    """Every token's scores depend on all tokens of the batch."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + out.logits.mean((0, 1))
        return out


class NeedsTheMask(LlamaForCausalLM):
    """Takes no notice of restarted positions, as OPT does, but follows a mask."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, **kwargs):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return super().forward(input_ids, attention_mask, position_ids, **kwargs)


def test_a_model_that_needs_an_explicit_mask_gets_one():
    torch.manual_seed(0)
    model = NeedsTheMask(LlamaConfig(**LLAMA)).eval()
    model.set_attn_implementation("eager")
    assert find_isolation(model, VOCABULARY, CPU, torch.float32) == "mask"
    batch = examples([9, 20, 4, 7])
    for example, packed in zip(batch, scores(model, batch, "mask", torch.float32), strict=True):
        with torch.no_grad():
            alone = model(torch.tensor([example.ids])).logits[0]
        torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)


def test_a_model_that_leaks_every_way_is_refused_in_one_line():
    model = Leaky(LlamaConfig(**LLAMA)).train()
    with pytest.raises(TrainingError, match=r"^Leaky: examples influence each other") as caught:
        find_isolation(model, VOCABULARY, CPU, torch.float32)
    assert "\n" not in str(caught.value)
    assert model.training, "the model's mode is as it was"


def test_the_self_test_draws_nothing_from_the_global_generator():
    state = torch.get_rng_state()
    model = build("llama")
    torch.set_rng_state(state)
    find_isolation(model, VOCABULARY, CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
