"""Who takes part in the benchmarks of a training step: loralab, PEFT, full fine-tuning, what it could cost.

All have the same weights, tokens and loss; adapters begin with the same factors. A step trains on half of
the tokens, as answers to prompts do, and AdamW moves what a contestant trains. "frozen" is the forward pass
and the gradient through the activations alone, with transformers' loss or with ours. "matrix products" is
only the products with the base's weights that these two passes are made of; the head's are for the trained
tokens.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import loralab
from loralab.adapters.kbit import checkpoint_activations
from loralab.data.types import Example
from loralab.models import BaseModel, load_tokenizer
from loralab.training.prepare import causal_lm
from loralab.training.tasks.causal_lm import CausalLM
from models import GROWN, LLAMA, Shape, assets, grown, random_gpt2, random_llama, random_qwen2

__all__ = ["CONTESTANTS", "LIMITS", "LORA", "Setup", "Work"]

Step = Callable[[], Any]
"""Do one step; return the loss where there is one."""
LIBRARIES: dict[str, Any] = {"loralab": loralab, "peft": peft}


@dataclass(frozen=True)
class Setup:
    """A model, a batch and an adapter."""

    model: str = "llama"
    dtype: torch.dtype = torch.bfloat16
    rows: int = 8
    tokens: int = 256
    rank: int = 16
    targets: str | tuple[str, ...] = "all-linear"
    limits: bool = True
    """Whether full fine-tuning and what a step could cost are measured too."""
    shape: Shape = LLAMA

    @property
    def title(self) -> str:
        targets = self.targets if isinstance(self.targets, str) else ",".join(self.targets)
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.model}, {dtype}, {self.rows} x {self.tokens} tokens, rank {self.rank}, {targets}"

    def base(self) -> PreTrainedModel:
        """Return the model, in training mode."""
        if self.model in GROWN:
            return AutoModelForCausalLM.from_pretrained(grown(self.model), dtype=self.dtype).train()
        make = {"llama": random_llama, "gpt2": random_gpt2, "qwen2": random_qwen2}[self.model]
        return make(self.shape, self.dtype)

    def ids(self) -> Tensor:
        """Return tokens [B, T]: of stories for a model that knows words, else random ones."""
        folder = assets()
        if self.model not in GROWN or folder is None:
            generator = torch.Generator().manual_seed(1)
            return torch.randint(0, self.shape.vocabulary, (self.rows, self.tokens), generator=generator)
        with (folder / "data" / "text" / "tinystories_2k.jsonl").open(encoding="utf8") as lines:
            texts = [json.loads(line)["text"] for line, _ in zip(lines, range(50), strict=False)]
        ids = AutoTokenizer.from_pretrained(grown(self.model))("".join(texts))["input_ids"]
        return torch.tensor(ids[: self.rows * self.tokens]).view(self.rows, self.tokens)


class Work:
    """A setup's batch, its loss in two ways, and one original of its model that all frozen bases share."""

    def __init__(self, setup: Setup, *, alone: bool = False) -> None:
        self.setup = setup
        self.alone = alone
        self.original = setup.base()
        self.ids_BT = setup.ids()
        prompt = setup.tokens // 2
        self.labels_BT = self.ids_BT.clone()
        self.labels_BT[:, :prompt] = -100
        weights = (0.0,) * prompt + (1.0,) * (setup.tokens - prompt)
        self.examples = [Example(tuple(row), weights) for row in self.ids_BT.tolist()]
        self.trained = setup.rows * (setup.tokens - prompt)
        self.limit = CausalLM(0, "rows", torch.device("cpu"), setup.dtype, direct=True)

    def plainly(self, model: nn.Module) -> Tensor:
        """Return the loss as transformers computes it."""
        return model(input_ids=self.ids_BT, labels=self.labels_BT, use_cache=False).loss

    def ours(self, model: nn.Module, task: CausalLM | None = None) -> Tensor:
        """Return the loss as loralab computes it; without a task, with the model's own attention."""
        return (task or self.limit).loss(model, self.examples) / self.trained

    def task(self, model: PreTrainedModel) -> CausalLM:
        """Prepare a model as `loralab train` does."""
        setup = self.setup
        tokenizer = load_tokenizer("demo")  # of which the padding alone is read
        return causal_lm(BaseModel(setup.model, model, tokenizer, setup.dtype, torch.device("cpu")))

    def frozen(self) -> PreTrainedModel:
        """Return a model with the original's own weights, so that many take the memory of one."""
        held = {id(tensor): tensor for tensor in (*self.original.parameters(), *self.original.buffers())}
        return copy.deepcopy(self.original, held).requires_grad_(False)


def lora(library: str, dropout: float, work: Work, *, less: bool = False) -> Step:
    """LoRA; with `less`, activations are computed again in the backward pass."""
    setup = work.setup
    values: dict[str, Any] = {"r": setup.rank, "lora_alpha": 32, "lora_dropout": dropout}
    values["target_modules"] = setup.targets if isinstance(setup.targets, str) else list(setup.targets)
    if library == "peft" and setup.model == "gpt2":
        values["fan_in_fan_out"] = True
    torch.manual_seed(2)
    base = work.frozen()
    model = LIBRARIES[library].get_peft_model(base, LIBRARIES[library].LoraConfig(**values))
    if less and library == "loralab":
        checkpoint_activations(base, {"use_reentrant": False})
    elif less:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if library == "loralab":
        return trained(model, partial(work.ours, task=work.task(base)))
    return trained(model, work.plainly)


def full(work: Work) -> Step:
    model = work.original if work.alone else copy.deepcopy(work.original)
    return trained(model.requires_grad_(), work.plainly)


def trained(model: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> Step:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> float:
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def frozen(work: Work, *, ours: bool) -> Step:
    model = work.frozen()
    model.enable_input_require_grads()
    loss_of = work.ours if ours else work.plainly

    def through() -> None:
        loss_of(model).backward()

    return through


def products(work: Work) -> Step:
    head = work.original.get_output_embeddings()
    factors = []
    for module in work.original.modules():
        if isinstance(module, nn.Linear | Conv1D):
            weight_OI = module.weight.detach()
            weight_OI = weight_OI.t() if isinstance(module, Conv1D) else weight_OI
            rows = work.trained if module is head else work.ids_BT.numel()
            out, width = weight_OI.shape
            factors.append((weight_OI.new_ones(rows, width), weight_OI.new_ones(rows, out), weight_OI))

    def multiply() -> None:
        for x_NI, grad_NO, weight_OI in factors:
            F.linear(x_NI, weight_OI)
            grad_NO @ weight_OI

    return multiply


LORA = {
    f"{library}, dropout {dropout:g}": partial(lora, library, dropout)
    for library in LIBRARIES
    for dropout in (0.0, 0.05)
}
LIMITS: dict[str, Callable[[Work], Step]] = {
    "full fine-tuning": full,
    "frozen": partial(frozen, ours=False),
    "frozen, our loss": partial(frozen, ours=True),
    "matrix products": products,
}
CONTESTANTS: dict[str, Callable[[Work], Step]] = {
    **LORA,
    **{
        f"{library}, dropout 0.05, checkpointing": partial(lora, library, 0.05, less=True)
        for library in LIBRARIES
    },
    **LIMITS,
}
