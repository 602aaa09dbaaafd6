"""Measure how near LoRA comes to full fine-tuning: python benchmarks/quality.py [--quick] [--log FILE].

stories260K is trained by loralab's own loop, 400 steps of 16 examples: on 2,000 rows of E2E with the loss on
the answers, or on tinyshakespeare in blocks of 256 tokens. An adapter and all weights see the same examples
in the same order. The measure is the share of full fine-tuning's improvement in validation loss:
(base - adapter) / (base - full), each at its best learning rate.

Every trial goes to the log as it ends, and what stands there is not run again: on one core all of it takes
hours. `python scripts/quality.py` makes the tables and pictures of docs/quality.md from the results.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import commit, report

from loralab.data.types import Example
from loralab.models import BaseModel
from loralab.training.checkpoint import Progress
from loralab.training.config import RunConfig, check
from loralab.training.effort import EFFORTS
from loralab.training.evaluation.generate import Ends, Question, answer
from loralab.training.evaluation.metrics import load_metrics
from loralab.training.loop import Course, evaluate, train
from loralab.training.optimizers import make_optimizer
from loralab.training.prepare import causal_lm, completed, open_base
from loralab.training.trainee import make_trainees
from models import assets

Settings = dict[str, Any]
Rows = tuple[list[Example], list[Example]]
"""Training and validation examples."""

BLOCK = 256
"""Tokens of a block of raw text."""
HELD_OUT = 300
"""Validation rows of E2E, those of the reference numbers."""
METRICS = ("bleu", "nist", "rouge")


@dataclass(frozen=True)
class Size:
    """How long the trials are and how many there are."""

    steps: int = 400
    batch: int = 16
    rows: int | None = None
    """Training rows, and a fifth as many for validation; None: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    prompts: int = 100
    longest: int = 120
    """Tokens of an answer."""


QUICK = Size(steps=3, batch=4, rows=20, seeds=(0,), ranks=(2,), prompts=3, longest=4)


@dataclass(frozen=True)
class Trial:
    """One training run. Its settings name the targets; what else they leave out is loralab's default."""

    part: str
    """The table that it belongs to."""
    name: str
    settings: Settings = field(hash=False)
    task: str = "e2e"
    seed: int = 0

    @property
    def key(self) -> str:
        """What is trained; equal trials of two parts are run once."""
        return json.dumps([self.task, self.settings, self.seed], sort_keys=True)


DEFAULT: Settings = {"target_modules": "all-linear, embeddings"}
"""What loralab chooses on this base, of 512 tokens, where no targets are named."""
LINEAR: Settings = {"target_modules": "all-linear"}
FULL: Settings = {"full": True, "learning_rate": 4e-3}
SLOWER: Settings = {"full": True, "learning_rate": 2e-3}
THOROUGH: Settings = {name: value for name, value in EFFORTS["thorough"].items() if name != "epochs"}
HEADLINE: dict[str, Settings] = {
    "full fine-tuning": FULL,
    "r = 8": {"r": 8} | DEFAULT,
    "r = 32": {"r": 32} | DEFAULT,
    "thorough": THOROUGH,
    "r = 8, linear layers alone": {"r": 8} | LINEAR,
    "r = 32, linear layers alone": {"r": 32} | LINEAR,
}
WHOLE: Settings = LINEAR | {"modules_to_save": "embed_tokens, norm"}
RECIPES: dict[str, Settings] = {
    "r = 32, norms trained whole": {"r": 32, "modules_to_save": "norm"} | DEFAULT,
    "r = 32, linear layers; embeddings and norms trained whole": {"r": 32} | WHOLE,
    "r = 8, linear layers": {"r": 8} | LINEAR,
    "the same, norms trained whole": {"r": 8, "modules_to_save": "norm"} | LINEAR,
    "the same, DoRA": {"r": 8, "use_dora": True} | LINEAR,
    "the same, LoRA+ ratio 4": {"r": 8, "lora_plus_ratio": 4.0, "learning_rate": 5e-3} | LINEAR,
    "the same, muon": {"r": 8, "optimizer": "muon"} | LINEAR,
    "the same, orthogonal start": {"r": 8, "init": "orthogonal"} | LINEAR,
    "the same, PiSSA start": {"r": 8, "init": "pissa"} | LINEAR,
    "the same, rsLoRA": {"r": 8, "use_rslora": True} | LINEAR,
    "the same, schedule wsd": {"r": 8, "lr_scheduler": "wsd"} | LINEAR,
}
_RATES = (5e-3, 7e-3, 1e-2, 2e-2)
RATES = {
    "full fine-tuning": (2e-3, 4e-3, 6e-3),
    "r = 8": _RATES,
    "r = 32": _RATES,
    "r = 8, linear layers alone": _RATES,
    "r = 32, linear layers alone": _RATES,
}


def trials(size: Size) -> Iterator[Trial]:
    """Yield what is to be trained, the most wanted first."""
    for seed in size.seeds:
        for name, settings in HEADLINE.items():
            yield Trial("headline", name, settings, seed=seed)
    for name, rates in RATES.items():
        for rate in rates:
            yield Trial("rates", name, HEADLINE[name] | {"learning_rate": rate})
    for name, settings in RECIPES.items():
        yield Trial("recipes", name, settings)
    for part, targets in (("ranks", DEFAULT), ("linear_ranks", LINEAR)):
        for rank in size.ranks:
            yield Trial(part, str(rank), {"r": rank} | targets)
    for name in ("attention", "feed-forward", "all-linear", "all-linear, embeddings"):
        yield Trial("targets", name, {"r": 8, "target_modules": name})
    for name, settings in {**HEADLINE, "full fine-tuning, slower": SLOWER}.items():
        yield Trial("shakespeare", name, settings, task="shakespeare")


def model_folder() -> Path:
    where = assets()
    if where is None:
        raise SystemExit("stories260K and its data are test assets: set LORALAB_ASSETS to their folder.")
    return where / "models" / "stories260K"


def settings_of(trial: Trial, size: Size) -> RunConfig:
    """Return all settings of a trial."""
    given = {"model": str(model_folder()), "dtype": "float32", "seed": trial.seed}
    length = {"max_steps": size.steps, "save_steps": size.steps, "batch_size": size.batch}
    return check(given | length | trial.settings)


def read_rows(task: str, base: BaseModel, size: Size) -> Rows:
    """Return the examples of a task."""
    data = model_folder().parents[1] / "data"
    if task == "e2e":
        rows = [read_pairs(data / "e2e" / name, base) for name in ("train_2k.jsonl", "valid_500.jsonl")]
        trained, held_out = rows[0], rows[1][:HELD_OUT]
    else:
        text = (data / "text" / "tinyshakespeare.txt").read_text(encoding="utf8")
        ids = base.tokenizer(text, add_special_tokens=False).input_ids
        starts = range(0, len(ids) - BLOCK + 1, BLOCK)
        blocks = [Example(tuple(ids[i : i + BLOCK]), (0.0,) + (1.0,) * (BLOCK - 1)) for i in starts]
        cut = len(blocks) * 9 // 10
        trained, held_out = blocks[:cut], blocks[cut:]
    return trained[: size.rows], held_out[: size.rows and size.rows // 5]


def read_pairs(path: Path, base: BaseModel) -> list[Example]:
    """Return rows with the prompt and the answer tokenized apart, as in the reference numbers."""
    examples = []
    for line in path.read_text(encoding="utf8").splitlines():
        row = json.loads(line)
        given = prompt_ids(row["prompt"], base)
        answer_ids = base.tokenizer(row["completion"], add_special_tokens=False).input_ids
        ids = (*given, *answer_ids, base.tokenizer.eos_token_id)
        examples.append(Example(ids, (0.0,) * len(given) + (1.0,) * (len(answer_ids) + 1)))
    return examples


def prompt_ids(prompt: str, base: BaseModel) -> tuple[int, ...]:
    """Return the ids that an answer is to follow."""
    tokens = base.tokenizer(prompt + "\n", add_special_tokens=False).input_ids
    return (base.tokenizer.bos_token_id, *tokens)


def run(trial: Trial, size: Size, rows: Rows) -> Settings:
    """Train, and return the losses before and after, and for the headline the scores of greedy answers."""
    began = time.perf_counter()
    given, (trained, held_out) = settings_of(trial, size), rows
    base = open_base(given)
    config = completed(given, base)
    (trainee,) = make_trainees([config], base)
    task = causal_lm(base)
    with trainee.without():
        before, _ = evaluate(trainee.model, task, held_out, 50)
    optimizer = make_optimizer(trainee.model, config)
    course = Course(trainee, task, (trained, ()), config, optimizer, Progress(), lambda: "")
    for _ in train(course):
        pass
    loss, tokens = evaluate(trainee.model, task, held_out, 50)
    found = {
        "base": before,
        "loss": loss,
        "validation_tokens": tokens,
        "parameters": trainee.parameters()[0],
        "learning_rate": config.learning_rate,
        "commit": commit(),
    }
    if trial.part == "headline":
        found |= {"text": write_and_score(trainee.model, base, size)}
    return found | {"seconds": time.perf_counter() - began}


def write_and_score(model: Any, base: BaseModel, size: Size) -> dict[str, float]:
    """Return BLEU, NIST and ROUGE of greedy answers to the test prompts, each with several references."""
    path = model_folder().parents[1] / "data" / "e2e" / "test_100_refs.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()][: size.prompts]
    questions = [Question(prompt_ids(row["prompt"], base), tuple(row["references"]), "") for row in rows]
    ends = Ends((base.tokenizer.eos_token_id,))
    model.eval()
    answers = returned(answer(model, base.tokenizer, questions, ends, (size.longest, 50)))
    references = [question.references for question in questions]
    scores: dict[str, float] = {}
    for score in load_metrics(METRICS).values():
        scores |= score(answers, references)
    return scores


def returned(answers: Any) -> list[str]:
    """Return what a generator returns in the end."""
    while True:
        try:
            next(answers)
        except StopIteration as end:
            found: list[str] = end.value
            return found


def measure(size: Size, log: Path | None, *, log_only: bool = False) -> Iterator[Settings]:
    """Yield the results of all trials, those of the log included; with `log_only` no others."""
    base = open_base(RunConfig(model=str(model_folder()), dtype="float32"))
    rows = {task: read_rows(task, base, size) for task in ("e2e", "shakespeare")}
    known = read_log(log)
    for trial in trials(size):
        values = known.get(trial.key)
        if values is None:
            if log_only:
                continue
            values = known[trial.key] = run(trial, size, rows[trial.task])
            if log is not None:
                with log.open("a", encoding="utf8") as file:
                    file.write(json.dumps({"key": trial.key, "values": values}) + "\n")
        yield asdict(trial) | values


def read_log(log: Path | None) -> dict[str, Settings]:
    """Return what the log has, by `Trial.key`."""
    if log is None or not log.exists():
        return {}
    lines = [json.loads(line) for line in log.read_text(encoding="utf8").splitlines()]
    return {line["key"]: line["values"] for line in lines}


def shares(results: list[Settings]) -> dict[str, dict[str, float]]:
    """Return by task the base's loss and full fine-tuning's: at its best rate the median of the seeds."""
    reached = {}
    for task in dict.fromkeys(result["task"] for result in results):
        own = [r for r in results if r["task"] == task]
        full: dict[float, dict[int, float]] = {}
        for result in (r for r in own if r["settings"].get("full")):
            full.setdefault(result["learning_rate"], {})[result["seed"]] = result["loss"]
        best = min(median(losses.values()) for losses in full.values())
        reached[task] = {"base": own[0]["base"], "full": best}
    for result in results:
        base, full = reached[result["task"]].values()
        result["share"] = (base - result["loss"]) / (base - full) if full < base else math.nan
    return reached


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how near LoRA comes to full fine-tuning.")
    parser.add_argument("--quick", action="store_true", help="a few steps each; nothing is written")
    parser.add_argument("--json", action="store_true", help="print JSON in place of lines")
    parser.add_argument("--log", type=Path, help="file that keeps each trial, to go on from")
    parser.add_argument("--log-only", action="store_true", help="run nothing more, report what the log has")
    return parser.parse_args()


def main() -> None:
    given = flags()
    size = QUICK if given.quick else Size()
    torch.set_num_threads(1)
    results = []
    for result in measure(size, given.log, log_only=given.log_only):
        results.append(result)
        if not given.json:
            label = f"{result['part']}, {result['name']}, seed {result['seed']}"
            print(f"{label}: loss {result['loss']:.4f}", flush=True)
    reached = shares(results)
    report("quality", {"size": asdict(size), "reached": reached, "trials": results}, given)


if __name__ == "__main__":
    main()
