"""Time a step of many adapters together against one after another: python benchmarks/many.py.

Each adapter has rows of its own, two a step, an optimizer and a clipped gradient. Together, the rows of all
go through the base as one batch; one after another, each adapter has a model of its own on the same weights.
A step of a case is a step of every adapter. The base is a random Llama of 69 million parameters in bf16. Rows
are as long as the first ones of the E2E task in GPT-2's tokens where the test assets are (random tokens of
such lengths else). The error of a case is its mean loss a trained token at the last step.
"""

import copy
import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from measure import Case, Table, arguments, race, report, show
from torch import Tensor
from transformers import AutoTokenizer

from loralab import LoraConfig, get_peft_model
from loralab.data.dataset import Reading, load_dataset
from loralab.data.types import Example
from loralab.models import BaseModel, load_tokenizer
from loralab.training.prepare import causal_lm
from models import LLAMA, TINY, Shape, assets, random_llama

BATCH = 2
ROUNDS = 5
Part = Sequence[Example]


@dataclass(frozen=True)
class Setup:
    """The adapters' rank, how many there are, and the base's sizes."""

    rank: int = 16
    counts: tuple[int, ...] = (1, 4, 8, 16)
    shape: Shape = LLAMA

    def base(self) -> BaseModel:
        model = random_llama(self.shape, torch.bfloat16)
        return BaseModel("llama", model, load_tokenizer("demo"), torch.bfloat16, torch.device("cpu"))

    def parts(self) -> list[Part]:
        """Return the rows of each adapter's step."""
        count = BATCH * max(self.counts)
        lengths = e2e_lengths(count) or made_up_lengths(count)
        generator = torch.Generator().manual_seed(1)
        rows = []
        for prompt, answer in lengths:
            ids = torch.randint(0, self.shape.vocabulary, (prompt + answer,), generator=generator).tolist()
            rows.append(Example(tuple(ids), (0.0,) * prompt + (1.0,) * answer))
        return [rows[start : start + BATCH] for start in range(0, count, BATCH)]


def e2e_lengths(count: int) -> list[tuple[int, int]]:
    """Return the tokens of the prompts and answers of the first rows of E2E, if the assets are there."""
    folder = assets()
    if folder is None:
        return []
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizers" / "gpt2")
    tokenizer.pad_token = tokenizer.eos_token
    path = folder / "data" / "e2e" / "train_2k.jsonl"
    examples = load_dataset(path, tokenizer, Reading(cutoff_length=512, template="plain")).examples[:count]
    return [(len(example.ids) - example.trained, example.trained) for example in examples]


def made_up_lengths(count: int) -> list[tuple[int, int]]:
    """Return about the same."""
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(20, 46, (2,), generator=generator).tolist()) for _ in range(count)]


class Trainee:
    """A model of its own on the original's weights, with adapters that begin alike, and what trains them."""

    def __init__(self, setup: Setup, original: BaseModel, names: Sequence[str]) -> None:
        held = {id(t): t for t in (*original.model.parameters(), *original.model.buffers())}
        model = copy.deepcopy(original.model, held)
        base = BaseModel(original.name, model, original.tokenizer, original.dtype, original.device)
        config = LoraConfig(r=setup.rank, lora_alpha=32, target_modules="all-linear")
        self.names = names
        self.model: Any = None
        self.owned = []
        for name in names:
            torch.manual_seed(2)
            if self.model is None:
                self.model = get_peft_model(base.model, config, name)
            else:
                self.model.add_adapter(name, config)
            self.model.base_model.set_adapter(name)
            self.owned.append([p for p in self.model.parameters() if p.requires_grad])
        self.model.base_model.set_adapter(list(names))
        self.model.train()
        self.task = causal_lm(base)
        self.optimizers = [torch.optim.AdamW(own, lr=1e-4) for own in self.owned]

    def step(self, parts: Sequence[Part]) -> list[float]:
        """Make a step of every adapter along its own rows, and return their losses."""
        weights = [sum(self.task.weight(example) for example in part) for part in parts]
        losses = self.losses(parts)
        shares = torch.stack([loss / weight for loss, weight in zip(losses, weights, strict=True)])
        shares.sum().backward()
        for own, optimizer in zip(self.owned, self.optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(own, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return shares.tolist()

    def losses(self, parts: Sequence[Part]) -> list[Tensor]:
        if len(parts) == 1:
            return [self.task.loss(self.model, parts[0])]
        joint = self.task.join(parts)
        with self.model.base_model.rows(*joint.rows(self.names)):
            return self.task.losses(self.model, joint)


def one_after_another(setup: Setup, original: BaseModel, parts: Sequence[Part]) -> Callable[[], float]:
    trainees = [Trainee(setup, original, ["default"]) for _ in parts]

    def step() -> float:
        return statistics.mean(
            loss for trainee, part in zip(trainees, parts, strict=True) for loss in trainee.step([part])
        )

    return step


def together(setup: Setup, original: BaseModel, parts: Sequence[Part]) -> Callable[[], float]:
    trainee = Trainee(setup, original, [f"run{index}" for index in range(len(parts))])
    return lambda: statistics.mean(trainee.step(parts))


def main() -> None:
    flags = arguments("Time a step of many adapters together against one after another.")
    setup = Setup(4, (1, 2), TINY) if flags.quick else Setup()
    rounds = 2 if flags.quick else ROUNDS
    original = setup.base()
    parts = setup.parts()
    tables: dict[str, Table] = {}
    for count in setup.counts:
        chosen = parts[:count]
        tokens = sum(len(example.ids) for part in chosen for example in part)
        title = f"{count} adapters x {BATCH} rows, {tokens} tokens, rank {setup.rank}"
        cases = {"one after another": one_after_another, "together": together}
        tables[title] = race(
            {name: Case(make(setup, original, chosen)) for name, make in cases.items()}, rounds
        )
        gc.collect()
        if not flags.json:
            show(title, tables[title], "loss")
    report("many", {"rounds": rounds, "seconds": tables}, flags)


if __name__ == "__main__":
    main()
