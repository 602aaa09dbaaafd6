"""Which feed-forward layers become lean; scores and gradients stay, and less is kept."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, LlamaConfig

from loralab.adapters import get_peft_model
from loralab.core.config import LoraConfig
from loralab.core.gated import silu_gated
from loralab.models.gates import set_lean_gates

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LlamaConfig(**SHAPE), 2),
        (GemmaConfig(**SHAPE), 0),
        (GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2), 0),
    ],
    ids=["llama", "gemma-has-gelu", "gpt2-has-none"],
)
def test_those_with_a_silu_gate_and_no_others(config, count):
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config),
        LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False),
    ).eval()
    other = copy.deepcopy(model)
    assert set_lean_gates(model) == count
    assert set_lean_gates(model) == 0, "what is lean already is not counted again"
    ids = torch.arange(14).view(2, 7)
    found = []
    for one in (model, other):
        logits = one(input_ids=ids).logits
        trained = [p for p in one.parameters() if p.requires_grad]
        found.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), trained)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_two_tensors_are_kept():
    gate, up = (torch.randn(5, 8, requires_grad=True) for _ in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        silu_gated(gate, up)
    assert {t.data_ptr() for t in kept} == {gate.data_ptr(), up.data_ptr()}


def test_the_gradient_is_that_of_the_formula():
    gate, up = (torch.randn(5, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(silu_gated, (gate, up))
