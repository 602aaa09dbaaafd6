"""Fifty steps with all that makes ours fast lose what PEFT loses in padded batches, step by step."""

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from loralab.adapters import get_peft_model
from loralab.core.config import LoraConfig
from loralab.data.types import Example
from loralab.models.gates import set_lean_gates
from loralab.models.norms import set_lean_norms
from loralab.training.isolation import find_isolation
from loralab.training.tasks.causal_lm import CausalLM

CPU = torch.device("cpu")
VOCABULARY = 300
STEPS, ROWS = 50, 6
SETTINGS = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


def base(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.08,
    )
    return LlamaForCausalLM(config).to(dtype)


def rows() -> list[Example]:
    """Counting in steps of 1 to 9, so that there is something to learn; of many lengths."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(ROWS * 8):
        length, first, by = (
            int(torch.randint(low, high, (), generator=generator))
            for low, high in ((9, 90), (0, 300), (1, 9))
        )
        ids = tuple((first + by * place) % VOCABULARY for place in range(length))
        made.append(Example(ids, tuple(float(place > length // 3) for place in range(length))))
    return made


def padded(examples: list[Example]) -> dict[str, torch.Tensor]:
    """What a collator makes of them."""
    width = max(len(example.ids) for example in examples)
    batch = {key: [] for key in ("input_ids", "attention_mask", "labels")}
    for example in examples:
        rest = width - len(example.ids)
        batch["input_ids"].append([*example.ids, *[0] * rest])
        batch["attention_mask"].append([1] * len(example.ids) + [0] * rest)
        labels = [
            token if weight else -100 for token, weight in zip(example.ids, example.weights, strict=True)
        ]
        batch["labels"].append(labels + [-100] * rest)
    return {key: torch.tensor(value) for key, value in batch.items()}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fifty_steps_lose_what_peft_s_lose(dtype):
    data = rows()
    models: dict[str, nn.Module] = {}
    for name, library in (("ours", None), ("theirs", peft)):
        model = base(dtype)
        torch.manual_seed(2)
        models[name] = (
            get_peft_model(model, LoraConfig(**SETTINGS))
            if library is None
            else peft.get_peft_model(model, peft.LoraConfig(**SETTINGS))
        )
    ours, theirs = models["ours"], models["theirs"]
    with torch.no_grad():
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(one)  # PEFT begins with A rounded to the precision of the base
    isolation = find_isolation(ours, VOCABULARY, CPU, dtype)
    assert isolation == "documents"
    assert set_lean_norms(ours) == 9
    assert set_lean_gates(ours) == 4
    task = CausalLM(0, isolation, CPU, dtype, direct=True)
    optimizers = [
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
        for model in (ours, theirs)
    ]
    losses = []
    for step in range(STEPS):
        start = step * ROWS % len(data)
        examples = data[start : start + ROWS]
        weight = sum(sum(example.weights) for example in examples)
        pair = (
            task.loss(ours, examples) / weight,
            theirs(**padded(examples), use_cache=False).loss,
        )
        for loss, optimizer in zip(pair, optimizers, strict=True):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append([float(loss.detach()) for loss in pair])
    assert losses[-1][0] < 0.8 * losses[0][0], "something is learned"
    worst = max(abs(one / other - 1) for one, other in losses)
    assert worst < (1e-4 if dtype == torch.float32 else 1e-2), worst
    mean = [sum(column) / STEPS for column in zip(*losses, strict=True)]
    assert mean[0] == pytest.approx(mean[1], rel=1e-3)
