"""Which norms of a model become lean, and that its scores and gradients stay."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, LlamaConfig, Qwen3Config

from loralab.models.norms import set_lean_norms

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
        (LlamaConfig(**SHAPE), 5),
        (Qwen3Config(**SHAPE), 9),
        (GemmaConfig(**SHAPE), 0),
        (GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2), 0),
    ],
    ids=["llama", "qwen3", "gemma-scales-by-one-more", "gpt2-has-others"],
)
def test_those_that_are_rms_norms_and_no_others(config, count):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    other = copy.deepcopy(model)
    assert set_lean_norms(model) == count
    assert set_lean_norms(model) == 0, "what is lean already is not counted again"
    embedded = torch.randn(2, 7, 16)
    found = []
    for one in (model, other):
        given = embedded.clone().requires_grad_()
        logits = one(inputs_embeds=given).logits
        found.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), given)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_norms_that_train_stay():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    assert set_lean_norms(model) == 0


def test_a_norm_by_name_alone_stays():
    class OddRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4), requires_grad=False)
            self.eps = 1e-6

        def forward(self, x):
            return x * self.weight

    assert set_lean_norms(nn.Sequential(OddRMSNorm())) == 0


def test_a_norm_with_a_gate_stays():
    class GatedRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4), requires_grad=False)
            self.eps = 1e-6

        def forward(self, x, gate=None):
            x = x if gate is None else x * gate
            return self.weight * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    assert set_lean_norms(nn.Sequential(GatedRMSNorm())) == 0


def test_a_lean_model_can_be_stored_and_its_norms_trained_after_all():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).requires_grad_(False)
    set_lean_norms(model)
    other = pickle.loads(pickle.dumps(model))
    ids = torch.arange(5)[None]
    torch.testing.assert_close(other(ids).logits, model(ids).logits)
    other.requires_grad_(True)
    other(ids).logits.sum().backward()
    assert other.model.norm.weight.grad is not None
