"""Time one training step against PEFT, full fine-tuning and a frozen model: python benchmarks/train_step.py.

The contestants have the same weights, tokens and loss; AdamW moves what each of them trains. "frozen" is what
a step of LoRA could cost: forward, and the gradient through the activations alone. Each step trains on half
of the tokens, as answers to prompts do. The error of a case is its loss after the last step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import peft
import torch
from measure import Case, Table, arguments, race, report, show
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import loralab
from loralab.data.types import Example
from loralab.training.tasks.causal_lm import CausalLM


@dataclass(frozen=True)
class Size:
    """A model and a batch."""

    vocabulary: int = 8192
    width: int = 768
    inner: int = 2048
    layers: int = 8
    heads: int = 12
    rows: int = 8
    tokens: int = 256
    rank: int = 16
    rounds: int = 5


QUICK = Size(256, 64, 128, 2, 4, rows=2, tokens=16, rank=4, rounds=3)


def base(size: Size, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
    )
    return LlamaForCausalLM(config).to(dtype).train()


def settings(size: Size, dropout: float) -> dict[str, Any]:
    return {"r": size.rank, "lora_alpha": 32, "target_modules": "all-linear", "lora_dropout": dropout}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> float:
    loss = loss_of()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def cases(size: Size, dtype: torch.dtype) -> dict[str, Case]:
    """Return the contestants over their own copies of one model."""
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, size.vocabulary, (size.rows, size.tokens), generator=generator)
    prompt = size.tokens // 2
    labels_BT = ids_BT.clone()
    labels_BT[:, :prompt] = -100
    weights = (0.0,) * prompt + (1.0,) * (size.tokens - prompt)
    examples = [Example(tuple(row), weights) for row in ids_BT.tolist()]
    trained = size.rows * (size.tokens - prompt)

    def plainly(model: nn.Module) -> Tensor:
        return model(input_ids=ids_BT, labels=labels_BT, use_cache=False).loss

    def ours(model: nn.Module, task: CausalLM) -> Tensor:
        return task.loss(model, examples) / trained

    def frozen(model: LlamaForCausalLM) -> None:
        embedded = model.get_input_embeddings()(ids_BT).requires_grad_()
        model(inputs_embeds=embedded, labels=labels_BT, use_cache=False).loss.backward()

    found: dict[str, Case] = {}

    def enter(name: str, model: nn.Module, loss_of: Callable[[], Tensor]) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        found[name] = Case(partial(step, model, optimizer, loss_of))

    for dropout in (0.0, 0.05):
        model = loralab.get_peft_model(base(size, dtype), loralab.LoraConfig(**settings(size, dropout)))
        task = CausalLM(0, "rows", torch.device("cpu"), dtype, direct=True)
        enter(f"loralab, dropout {dropout:g}", model, partial(ours, model, task))
    for dropout in (0.0, 0.05):
        model = peft.get_peft_model(base(size, dtype), peft.LoraConfig(**settings(size, dropout)))
        enter(f"peft, dropout {dropout:g}", model, partial(plainly, model))
    full = base(size, dtype)
    enter("full fine-tuning", full, partial(plainly, full))
    fixed = base(size, dtype).requires_grad_(False)
    found["frozen"] = Case(partial(frozen, fixed))
    return found


def main() -> None:
    flags = arguments("Time a training step against PEFT and full fine-tuning.")
    size = QUICK if flags.quick else Size()
    tables: dict[str, Table] = {}
    for dtype in (torch.bfloat16, torch.float32):
        title = f"{str(dtype).removeprefix('torch.')}, {size.rows} x {size.tokens} tokens, rank {size.rank}"
        tables[title] = race(cases(size, dtype), size.rounds)
        if not flags.json:
            show(title, tables[title], "loss")
    report("train_step", {"rounds": size.rounds, "seconds": tables}, flags)


if __name__ == "__main__":
    main()
