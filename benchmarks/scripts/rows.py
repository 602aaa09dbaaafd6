"""Rows as prompts and answers, and the validation loss: what both scripts beside this one share."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import TrainerCallback

INTRODUCTION = (
    "Below is an instruction that describes a task{more}. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
)
MORE = ", paired with an input that provides further context"


def read_rows(path: str) -> list[dict[str, str]]:
    """Return rows of prompt and completion: Stanford Alpaca's text, or a prompt on a line of its own."""
    found = []
    for line in Path(path).read_text(encoding="utf8").splitlines():
        row = json.loads(line)
        if "prompt" in row:
            found.append({"prompt": row["prompt"] + "\n", "completion": row["completion"]})
            continue
        given = row.get("input", "")
        text = INTRODUCTION.format(more=MORE if given else "", instruction=row["instruction"])
        text += f"### Input:\n{given}\n\n" if given else ""
        found.append({"prompt": text + "### Response:\n", "completion": row["output"]})
    return found


def encode(row: dict[str, str], tokenizer: Any) -> dict[str, list[int]]:
    """Return a row's ids and its labels, which are the answer and the mark that ends it."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
    return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}


class Validate(TrainerCallback):
    """Write time, step and validation loss every so many steps; the loss is the mean over trained tokens.

    transformers' own evaluation averages batches, whatever they weigh, so its loss is another number.
    """

    def __init__(self, rows: Sequence[dict[str, list[int]]], collate: Any, settings: dict[str, Any]) -> None:
        by_length = sorted(rows, key=lambda row: len(row["input_ids"]), reverse=True)
        size = settings["batch_size"]
        self.batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        self.collate = collate
        self.every, self.last = settings["eval_steps"], settings["steps"]
        self.path = Path(settings["out"]) / "losses.jsonl"

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == self.last:
            line = {"step": state.global_step, "loss": self.loss(model), "time": time.time()}
            with self.path.open("a", encoding="utf8") as file:
                file.write(json.dumps(line) + "\n")

    @torch.no_grad()
    def loss(self, model: Any) -> float:
        model.eval()
        total, count = 0.0, 0
        for batch in self.batches:
            inputs = self.collate(batch)
            targets = inputs.pop("labels")[:, 1:]
            trained = targets != -100
            logits = model(**inputs, use_cache=False).logits[:, :-1][trained].float()
            total += float(F.cross_entropy(logits, targets[trained], reduction="sum"))
            count += int(trained.sum())
        model.train()
        return total / count
