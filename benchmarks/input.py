"""Time the way from a data file to batches against trl: python benchmarks/input.py.

Both read the same rows with the same tokenizer to the same tokens: trl with its own SFTTrainer, which
prepares and packs the data set (strategy "bfd") and has a collator of its own. Batches are of 8: for loralab
of 8 examples, for trl of 8 packed rows. It joins these to one long row, which only FlashAttention keeps
apart; "trl, as rows" is how full they are before. A cache is cold when its folder is empty.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import trl
from measure import Case, arguments, race, report, show
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from loralab.data.batch import collate
from loralab.data.dataset import Reading, load_dataset
from loralab.data.sources import read_rows
from loralab.data.templates import choose_template
from loralab.data.types import Message
from loralab.models import load_tokenizer

BATCH = 8
CUTOFF = 512
ROUNDS = 5

Fill = tuple[int, int]
"""Tokens, and positions of the tensors that hold them."""


@dataclass(frozen=True)
class Work:
    """The same rows as either library takes them, and where each has its cache."""

    folder: Path
    tokenizer: Any
    rows: int

    @property
    def ours(self) -> Path:
        return self.folder / "ours.jsonl"

    @property
    def theirs(self) -> Path:
        return self.folder / "theirs.jsonl"

    def forget(self) -> None:
        """Empty both caches."""
        for name in ("cache", "hf"):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def source_rows(quick: bool) -> list[tuple[str, str]]:
    """Return prompts and answers: real ones where the assets are, else made up."""
    assets = os.environ.get("LORALAB_ASSETS")
    if quick or not assets:
        count = 48 if quick else 4000
        return [
            (f"What is {n} times {n % 7}?" * (n % 5 + 1), f"It is {n * (n % 7)}. " * (n % 11 + 1))
            for n in range(count)
        ]
    rows = [row for _, row in read_rows(Path(assets) / "data" / "instruct" / "alpaca_en_demo.json")]
    return [
        (f"{row['instruction']}\n\n{row['input']} ({n})", str(row["output"]))
        for n in range(4)
        for row in rows
    ]


def prepare(folder: Path, quick: bool) -> Work:
    """Write the rows that fit whole, for each library as it wants them."""
    assets = os.environ.get("LORALAB_ASSETS")
    gpt2 = Path(assets or "", "tokenizers", "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(gpt2) if assets and not quick else load_tokenizer("demo")
    tokenizer.pad_token = tokenizer.eos_token
    template = choose_template(tokenizer, "plain", "plain")
    rows = []
    for prompt, answer in source_rows(quick):
        written = template.prompt_text([Message("user", prompt)])
        if len(tokenizer(written + answer)["input_ids"]) < CUTOFF:
            rows.append((prompt, written, answer))
    work = Work(folder, tokenizer, len(rows))
    for path, column in ((work.ours, 0), (work.theirs, 1)):
        lines = [json.dumps({"prompt": row[column], "completion": row[2]}) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf8")
    return work


def by(rows: Sequence[Any]) -> list[Any]:
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


def our_examples(work: Work) -> Any:
    data = load_dataset(work.ours, work.tokenizer, Reading(cutoff_length=CUTOFF, template="plain"))
    assert len(data.examples) == work.rows
    return data


def our_batches(work: Work) -> Fill:
    tokens = positions = 0
    for examples in by(our_examples(work).examples):
        batch = collate(examples, work.tokenizer.pad_token_id, "documents")
        tokens += batch.tokens
        positions += batch.input_ids_BT.numel()
    return tokens, positions


def sft_trainer(work: Work) -> SFTTrainer:
    """Return trl's trainer of a model that is never run, over one row: what prepares and collates."""
    config = LlamaConfig(
        vocab_size=len(work.tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    return SFTTrainer(
        model=LlamaForCausalLM(config),
        processing_class=work.tokenizer,
        train_dataset=datasets.Dataset.from_list([{"prompt": "a\n", "completion": "b"}]),
        args=SFTConfig(
            output_dir=str(work.folder / "trl"),
            packing=True,
            max_length=CUTOFF,
            per_device_train_batch_size=BATCH,
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
        ),
    )


def their_examples(work: Work, trainer: SFTTrainer) -> Any:
    rows = datasets.load_dataset(
        "json", data_files=str(work.theirs), split="train", cache_dir=str(work.folder / "hf")
    )
    return trainer._prepare_dataset(rows, work.tokenizer, trainer.args, True, None, "train")


def their_batches(work: Work, trainer: SFTTrainer) -> Fill:
    tokens = positions = 0
    packed = their_examples(work, trainer)
    for rows in by(range(len(packed))):
        examples = packed.__getitems__(list(rows))  # as torch's DataLoader asks
        batch = trainer.data_collator(examples)
        tokens += sum(len(example["input_ids"]) for example in examples)
        positions += batch["input_ids"].numel()
    return tokens, positions


def measure(work: Work, trainer: SFTTrainer) -> dict[str, Any]:
    """Return the tables and the numbers of one file."""
    stages: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "file to examples": (lambda: our_examples(work), lambda: their_examples(work, trainer)),
        "file to batches": (lambda: our_batches(work), lambda: their_batches(work, trainer)),
    }
    work.forget()
    ours, theirs = our_batches(work), their_batches(work, trainer)
    packed = len(their_examples(work, trainer))
    tables = {}
    for stage, (mine, other) in stages.items():
        work.forget()
        cold = {"trl": Case(other, work.forget), "loralab": Case(mine, work.forget)}
        tables[f"{stage}, cold cache"] = race(cold, ROUNDS)
        mine(), other()
        tables[f"{stage}, warm cache"] = race({"trl": Case(other), "loralab": Case(mine)}, ROUNDS)
    return {
        "rows": work.rows,
        "tokens": {"trl": theirs[0], "loralab": ours[0]},
        "fill": {
            "trl": theirs[0] / theirs[1],
            "trl, as rows": theirs[0] / (packed * CUTOFF),
            "loralab": ours[0] / ours[1],
        },
        "seconds": tables,
        "rows a second": rates(tables, {"trl": work.rows, "loralab": work.rows}),
        "tokens a second": rates(tables, {"trl": theirs[0], "loralab": ours[0]}),
    }


def rates(tables: dict[str, Any], amounts: dict[str, int]) -> dict[str, dict[str, float]]:
    return {
        title: {name: amounts[name] / row["seconds"] for name, row in table.items()}
        for title, table in tables.items()
    }


def tell(values: dict[str, Any], flags: argparse.Namespace) -> None:
    for title, table in values["seconds"].items():
        show(f"{title}, {values['rows']:,} rows", table)
        for name in table:
            rows, tokens = values["rows a second"][title][name], values["tokens a second"][title][name]
            print(f"{name:26} {rows:11,.0f} rows/s {tokens:13,.0f} tokens/s")
    print("\nfill: " + ", ".join(f"{name} {fill:.4f}" for name, fill in values["fill"].items()))


def main() -> None:
    flags = arguments("Time the way from a data file to batches against trl.")
    datasets.disable_progress_bars()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LORALAB_CACHE"] = str(Path(folder, "cache"))
        work = prepare(Path(folder), flags.quick)
        values = measure(work, sft_trainer(work))
    if not flags.json:
        tell(values, flags)
    report("input", {"trl": trl.__version__, "rounds": ROUNDS, **values}, flags)


if __name__ == "__main__":
    main()
