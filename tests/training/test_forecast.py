"""The forecast of memory against what torch really keeps and takes, and what it chooses."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from loralab.adapters import get_peft_model
from loralab.core.config import LoraConfig
from loralab.data.types import Example
from loralab.training.forecast import Kept, count_kept, forecast, free_memory, stack_of
from loralab.training.tasks.causal_lm import CausalLM

CPU = torch.device("cpu")
LLAMA = LlamaConfig(
    vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
)
GPT2 = GPT2Config(vocab_size=60, n_embd=32, n_layer=3, n_head=2, n_positions=512, attn_pdrop=0.0)
MODELS = {"llama": (LlamaForCausalLM, LLAMA), "gpt2": (GPT2LMHeadModel, GPT2)}


def adapted(name: str, targets: str = "all-linear") -> nn.Module:
    kind, config = MODELS[name]
    return get_peft_model(
        kind(copy.deepcopy(config)), LoraConfig(r=4, target_modules=targets, lora_dropout=0.1)
    )


def example(tokens: int) -> Example:
    return Example(tuple(i % 60 for i in range(tokens)), (0.0,) + (1.0,) * (tokens - 1))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_counted_on_few_tokens_holds_for_many(name):
    model = adapted(name)
    task = CausalLM(0, "rows", CPU, torch.float32)
    kept = count_kept(model, task, [example(40)])
    seen = {}
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = task.loss(model, [example(400)])
    real = sum(seen.values())
    assert loss.requires_grad
    assert len(kept.layers) == 3
    assert 400 * (sum(kept.layers) + kept.outside) == pytest.approx(real, rel=0.03)


def test_counting_leaves_no_trace():
    model = adapted("llama").eval()
    state = torch.get_rng_state()
    count_kept(model, CausalLM(0, "rows", CPU, torch.float32), [example(9)])
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_as_few_layers_are_computed_again_as_fit():
    kept = Kept(layers=(1000.0,) * 8, outside=100.0, entry=10.0, scores=2000.0)
    wide = forecast(kept, 10_000, 0, 1 << 40, None)
    assert (wide.recomputed, wide.fits) == (0, True)
    tight = forecast(kept, 10_000, 0, 120_000_000, None)
    assert 0 < tight.recomputed < 8
    assert tight.fits
    assert not forecast(kept, 10_000, 0, 120_000_000, tight.recomputed - 1).fits
    hopeless = forecast(kept, 10_000, 0, 1_000_000, None)
    assert (hopeless.recomputed, hopeless.fits) == (8, False)
    assert forecast(kept, 10_000, 0, None, None).recomputed == 0, "nothing is known of the memory"


def test_below_the_lowest_adapted_layer_nothing_is_kept():
    model = adapted("llama", r".*layers\.2\..*proj")
    kept = count_kept(model, CausalLM(0, "rows", CPU, torch.float32), [example(40)])
    assert kept.layers[:2] == (0, 0)
    assert kept.layers[2] > 0


def test_the_stack_is_the_decoder():
    model = adapted("llama")
    assert stack_of(model) == list(model.base_model.model.model.layers)
    assert stack_of(nn.Linear(2, 2)) == []


def test_free_memory_is_a_number_of_bytes():
    free = free_memory(CPU)
    assert free is None or 1 << 20 < free < 1 << 50


MEASURED = """
import ctypes, sys
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from loralab.adapters import get_peft_model
from loralab.core.config import LoraConfig
from loralab.data.types import Example
from loralab.models.gates import set_lean_gates
from loralab.models.norms import set_lean_norms
from loralab.training.forecast import count_kept, forecast
from loralab.training.isolation import find_isolation
from loralab.training.fitting import keep_less
from loralab.training.tasks.causal_lm import CausalLM

again = int(sys.argv[1])
base = LlamaForCausalLM(LlamaConfig(vocab_size=512, hidden_size=512, intermediate_size=1024,
    num_hidden_layers=6, num_attention_heads=8))
model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", lora_dropout=0.05))
isolation = find_isolation(base, 512, torch.device("cpu"), torch.float32)
set_lean_norms(base)
set_lean_gates(base)
task = CausalLM(0, isolation, torch.device("cpu"), torch.float32, direct=True)
examples = [Example(tuple(i * j % 512 for i in range(256)), (0.0,) + (1.0,) * 255) for j in range(1, 9)]
kept = count_kept(model, task, examples)
trained = [p for p in model.parameters() if p.requires_grad]
expected = forecast(kept, 2048, 3 * sum(p.nbytes for p in trained), None, again).total
keep_less(base, again)
optimizer = torch.optim.AdamW(trained)
model.train()
def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
for _ in range(2):
    task.loss(model, examples).backward()
    optimizer.step()
    optimizer.zero_grad()
print(expected, resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize("again", [0, 3, 6])
def test_the_forecast_is_near_the_peak_of_a_process(again, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, str(again)], capture_output=True, text=True, check=True
    )
    expected, real = map(int, result.stdout.split())
    assert expected == pytest.approx(real, rel=0.2)
