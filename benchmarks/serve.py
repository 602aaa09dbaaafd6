"""Serve many adapters on one base, against the base alone and against PEFT: python benchmarks/serve.py.

32 streams write 32 tokens each after prompts of 16, greedily, on random Llamas in bf16; every adapter has
rank 16 on all linear layers of the blocks. A case's number is tokens a second, from the moment that all
streams write to the last token; its ratio R is that over the base's, by turns in one process:

* base alone; one adapter merged; 1, 8 and 32 adapters in one batch, round-robin;
* 32 adapters and 2,000 adapters over 32 slots, popularity by a power law (S-LoRA's trace, alpha 1): 96
  requests, 32 at a time. The 2,000 are 64 sets of weights under 2,000 identities, to fit into memory;
* PEFT: one mixed batch of 8 adapters (`adapter_names`), and 8 adapters one after another (`set_adapter`).

Then the time to the first token of an adapter that is on disk, in memory, or in a slot, and how the slowest
of many requests fares against the median with one and a half times more hot adapters than slots.
"""

import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from measure import arguments, report

from loralab.adapters.habits import Habits
from loralab.adapters.peft_format import write_adapter
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.models import BaseModel, load_tokenizer
from loralab.serving.cache import Read
from loralab.serving.engine import Engine, EngineSettings
from loralab.serving.places import Fitted, Part
from loralab.serving.requests import Answer, Request
from loralab.serving.sampling import Sampling
from models import TINY, Shape, random_llama

RANK = 16
STREAMS = 32
PROMPT = 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "110M": Shape(vocabulary=32_000, width=768, inner=2048, layers=8, heads=12),
    "1.1B": Shape(vocabulary=32_000, width=2048, inner=5632, layers=22, heads=32),
}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    shapes: dict[str, Shape]
    tokens: int = 32
    rounds: int = 3
    requests: int = 96
    many: int = 2000
    sets: int = 64
    streams: int = STREAMS
    with_peft: bool = True


FULL = Size(SHAPES)
QUICK = Size({"tiny": TINY}, tokens=3, rounds=2, requests=6, many=40, sets=4, streams=4)


def random_parts(engine: Engine, seed: int) -> dict[str, Part]:
    """Return factors of rank 16 for all linear layers of the blocks."""
    random_numbers = torch.Generator().manual_seed(seed)
    parts = {}
    for path, place in engine.placement.places.by_path.items():
        if path.rpartition(".")[2] in TARGETS:
            a = torch.randn(RANK, place.inputs, generator=random_numbers).mul_(0.02).bfloat16()
            b = torch.randn(place.outputs, RANK, generator=random_numbers).mul_(0.02).bfloat16()
            parts[path] = Part(a, b, 1.0)
    return parts


def fill(engine: Engine, count: int, sets: int) -> None:
    """Give the engine adapters a0, a1, ..., of at most `sets` different weights."""
    parts = [random_parts(engine, seed) for seed in range(min(sets, count))]
    for number in range(count):
        fitted = Fitted(f"a{number}", f"{number + 1:064x}", parts[number % len(parts)])
        engine.cache.put(f"a{number}", Read(fitted, Habits(), Path()))


def ask(engine: Engine, model: str, seed: int, tokens: int) -> Answer:
    words = torch.Generator().manual_seed(seed)
    prompt = torch.randint(4, 250, (PROMPT,), generator=words).tolist()
    return engine.submit(Request(prompt, model, Sampling(tokens, ignore_eos=True)))


def streams(engine: Engine, models: Sequence[str], size: Size) -> float:
    """Return tokens a second of streams that all write at once."""
    answers = [
        ask(engine, models[number % len(models)], number, size.tokens) for number in range(size.streams)
    ]
    for answer in answers:
        list(answer)
    first = max(answer.first or 0.0 for answer in answers)
    return size.streams * (size.tokens - 1) / (max(answer.ended or 0.0 for answer in answers) - first)


def traffic(engine: Engine, adapters: int, size: Size) -> float:
    """Return tokens a second of requests for adapters whose popularity follows a power law."""
    draw = random.Random(1)
    weights = [1 / (rank + 1) for rank in range(adapters)]
    models = [f"a{number}" for number in draw.choices(range(adapters), weights, k=size.requests)]
    began = time.perf_counter()
    going: list[Answer] = []
    for number, model in enumerate(models):
        while len(going) >= size.streams:
            going = [answer for answer in going if answer.finish is None]
            time.sleep(0.002)
        going.append(ask(engine, model, number, size.tokens))
    for answer in going:
        list(answer)
    return size.requests * size.tokens / (time.perf_counter() - began)


@contextmanager
def peft_model(base: BaseModel, adapters: int) -> Iterator[Any]:
    """A PEFT model around the base's weights, which are its own again afterwards."""
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, init_lora_weights=False)
    model = peft.get_peft_model(base.model, config, adapter_name="a0")
    for number in range(1, adapters):
        model.add_adapter(f"a{number}", config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.bfloat16()
    try:
        yield model.eval()
    finally:
        model.unload()


def peft_rates(base: BaseModel, adapters: int, size: Size) -> dict[str, float]:
    """Return PEFT's tokens a second: a mixed batch, and one adapter after another."""
    words = torch.Generator().manual_seed(0)
    prompts = torch.randint(4, 250, (size.streams, PROMPT), generator=words)
    names = [f"a{number % adapters}" for number in range(size.streams)]
    how = {
        "do_sample": False,
        "max_new_tokens": size.tokens,
        "min_new_tokens": size.tokens,
        "pad_token_id": 0,
    }

    def rate(work: Callable[[int], None]) -> float:
        """Time the tokens after the first, as for the engine: two lengths, and their difference."""
        seconds = []
        for tokens in (1, size.tokens):
            how["max_new_tokens"] = how["min_new_tokens"] = tokens
            began = time.perf_counter()
            work(tokens)
            seconds.append(time.perf_counter() - began)
        return size.streams * (size.tokens - 1) / max(seconds[1] - seconds[0], 1e-9)

    with peft_model(base, adapters) as model, torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mask = torch.ones_like(prompts)

        def mixed(tokens: int) -> None:
            model.generate(input_ids=prompts, attention_mask=mask, adapter_names=names, **how)

        def switching(tokens: int) -> None:
            for number in range(adapters):
                model.set_adapter(f"a{number}")
                rows = prompts[number::adapters]
                model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), **how)

        mixed(1)
        rates = [
            {"mixed": rate(mixed), "switching": rate(switching)} for _ in range(max(1, size.rounds // 2))
        ]
    return {name: statistics.median(one[name] for one in rates) for name in ("mixed", "switching")}


def ratios(base: BaseModel, size: Size) -> dict[str, Any]:
    """Return for each case the median of tokens a second and of R, and R's spread."""
    cases: dict[str, Callable[[Engine], float]] = {
        "base": lambda engine: streams(engine, [""], size),
        "1 merged": lambda engine: streams(engine, ["a0"], size),
        "1 mixed": lambda engine: streams(engine, ["a0"], size),
        "8 mixed": lambda engine: streams(engine, [f"a{i}" for i in range(8)], size),
        "32 mixed": lambda engine: streams(engine, [f"a{i}" for i in range(32)], size),
        "32 by power law": lambda engine: traffic(engine, 32, size),
        f"{size.many} over 32 slots": lambda engine: traffic(engine, size.many, size),
    }
    settings = EngineSettings(backend="continuous", cache_tokens=8192, max_running=size.streams)
    found: dict[str, list[float]] = {name: [] for name in cases}
    with Engine(base, settings=settings) as engine:
        fill(engine, size.many, size.sets)
        for turn in range(size.rounds + 1):
            for name, case in cases.items():
                # What is alone is merged unless it may not be.
                engine.placement._merging = "auto" if name == "1 merged" else "never"
                rate = case(engine)
                if turn:
                    found[name].append(rate)
    shares = {
        name: [r / b for r, b in zip(rates, found["base"], strict=True)] for name, rates in found.items()
    }
    table = {
        name: {
            "tokens_a_second": statistics.median(found[name]),
            "R": statistics.median(shares[name]),
            "spread": spread(shares[name]),
        }
        for name in cases
    }
    few, many = (found[name] for name in ("32 by power law", f"{size.many} over 32 slots"))
    over = [a / b for a, b in zip(many, few, strict=True)]
    table[f"{size.many} over 32"] = {"R": statistics.median(over), "spread": spread(over)}
    return table


def spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def first_tokens(base: BaseModel, size: Size) -> dict[str, float]:
    """Return the seconds to the first token, by where the adapter is."""
    with tempfile.TemporaryDirectory() as folder:
        settings = EngineSettings(backend="continuous", cache_tokens=4096, merging="never", slots=2)
        with Engine(base, settings=settings) as engine:
            parts = random_parts(engine, 0)
        for number in range(6):
            tensors = {}
            for path, part in parts.items():
                tensors[f"{path}.lora_A.weight"] = part.a_RI + number
                tensors[f"{path}.lora_B.weight"] = part.b_OR
            config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS)
            write_adapter(Adapter(config, tensors), Path(folder) / f"a{number}")
        found: dict[str, list[float]] = {"on disk": [], "in memory": [], "in a slot": []}
        with Engine(base, [folder], settings) as engine:
            list(ask(engine, "", 0, 2))
            for number in range(6):
                for where in ("on disk", "in a slot"):
                    began = time.perf_counter()
                    answer = ask(engine, f"a{number}", number, 2)
                    list(answer)
                    found[where].append((answer.first or 0.0) - began)
            for number in range(4):
                began = time.perf_counter()
                answer = ask(engine, f"a{number}", number + 50, 2)
                list(answer)
                found["in memory"].append((answer.first or 0.0) - began)
    return {where: statistics.median(seconds) for where, seconds in found.items()}


def thrash(base: BaseModel, size: Size) -> dict[str, float]:
    """Return the seconds to the first token, median and 99th percentile, with 12 hot adapters on 8 slots."""
    settings = EngineSettings(backend="continuous", cache_tokens=4096, merging="never", slots=8)
    with Engine(base, settings=settings) as engine:
        fill(engine, 12, 12)
        waits = []
        going: list[Answer] = []
        for number in range(2 * size.requests):
            while len(going) >= 16:
                going = [answer for answer in going if answer.finish is None]
                time.sleep(0.001)
            going.append(ask(engine, f"a{number % 12}", number, 8))
            waits.append(going[-1])
        for answer in going:
            list(answer)
    seconds = sorted((answer.first or 0.0) - answer.submitted for answer in waits)
    median, late = statistics.median(seconds), seconds[int(0.99 * (len(seconds) - 1))]
    return {"median": median, "p99": late, "ratio": late / median}


def main() -> None:
    flags = arguments(__doc__.partition("\n")[0], parts=tuple(SHAPES))
    size = QUICK if flags.quick else FULL
    torch.set_grad_enabled(False)
    values: dict[str, Any] = {}
    for name, shape in size.shapes.items():
        if flags.only not in (None, name) and not flags.quick:
            continue
        model = random_llama(shape, torch.bfloat16).eval()
        base = BaseModel(name, model, load_tokenizer("demo"), torch.bfloat16, torch.device("cpu"))
        values[name] = {"rates": ratios(base, size)}
        if size.with_peft:
            rates = peft_rates(base, min(8, size.streams), size)
            ours = values[name]["rates"]["8 mixed"]["tokens_a_second"]
            values[name]["peft"] = {
                one: {"tokens_a_second": rate, "ours_over_it": ours / rate} for one, rate in rates.items()
            }
        values[name]["first_token_seconds"] = first_tokens(base, size)
        values[name]["more_adapters_than_slots"] = thrash(base, size)
        if not flags.json:
            show(name, values[name])
    report("serve", {"results": values}, flags)


def show(name: str, values: dict[str, Any]) -> None:
    print(f"\n{name}, {STREAMS} streams, rank {RANK}")
    for case, row in values["rates"].items():
        rate = f"{row['tokens_a_second']:9.1f} tokens/s" if "tokens_a_second" in row else " " * 18
        print(f"{case:24} {rate}   R {row['R']:.3f}  spread {row['spread']:.3f}")
    for case, row in values["peft"].items():
        rate, ratio = row["tokens_a_second"], row["ours_over_it"]
        print(f"peft, 8 {case:16} {rate:9.1f} tokens/s   ours is {ratio:.2f} times")
    for where, seconds in values["first_token_seconds"].items():
        print(f"first token, {where:12} {1e3 * seconds:8.1f} ms")
    row = values["more_adapters_than_slots"]
    print(
        f"12 adapters on 8 slots: first token {1e3 * row['median']:.0f} ms, p99 {row['ratio']:.2f} times it"
    )


if __name__ == "__main__":
    main()
