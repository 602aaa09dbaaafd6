"""A small model for the initialisations that look at data, and what they may leave behind on one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralab import LoraConfig
from loralab.adapters.preprocess import preprocess_corda, preprocess_loraga

WORDS, WIDTH = 40, 16


class Net(nn.Module):
    """An embedding, GPT-2's kind of linear layer, two linear layers on one input, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.c_fc = Conv1D(24, WIDTH)
        self.left, self.right = nn.Linear(24, 12), nn.Linear(24, 12, bias=False)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(12, WORDS)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **others: Any) -> Tensor:
        x = torch.tanh(self.c_fc(self.embed(input_ids)))
        logits = self.out(self.drop(torch.tanh(self.left(x)) * self.right(x)))
        if labels is None:
            return logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


LINEAR = ["c_fc", "left", "right", "out"]


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    made = Net()
    nn.init.normal_(made.c_fc.weight, std=0.3)
    return made.eval()


def batches(count: int = 6, rows: int = 4, tokens: int = 10, seed: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (count, rows, tokens), generator=generator)
    return [{"input_ids": batch, "labels": batch.roll(1, 1)} for batch in ids]


def config(name: str, **settings: Any) -> LoraConfig:
    return LoraConfig(init_lora_weights=name, target_modules=LINEAR, r=4, lora_alpha=12, **settings)


def run(model: nn.Module, data: list[dict[str, Tensor]] | None = None) -> Callable[[], None]:
    def run_model() -> None:
        for batch in data or batches():
            model(**batch)

    return run_model


def step(model: nn.Module, data: list[dict[str, Tensor]] | None = None) -> Callable[[], None]:
    def train_step() -> None:
        for batch in data or batches():
            model(**batch).backward()

    return train_step


def prepared(name: str, base: nn.Module, **settings: Any) -> LoraConfig:
    """A config of that initialisation with what it has to know about `base`."""
    made = config(name, **settings)
    if name == "corda":
        preprocess_corda(base, made, run(base))
    if name == "lora_ga":
        preprocess_loraga(base, made, step(base))
    return made


def traces(model: nn.Module) -> dict[str, Any]:
    """What looking at a model's data may leave behind."""
    return {
        "modes": [module.training for module in model.modules()],
        "trains": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is not None for parameter in model.parameters()],
        "parameters": [id(parameter) for parameter in model.parameters()],
        "values": [parameter.detach().clone() for parameter in model.parameters()],
        "hooks": [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
        "backward": [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()],
        "attributes": [sorted(module.__dict__) for module in model.modules()],
        "random": torch.get_rng_state(),
    }


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return bool(first == second)
