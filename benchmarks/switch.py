"""Switch a whole model between adapters, against PEFT: python benchmarks/switch.py.

Random Llamas in bf16, adapters of rank 16 on all linear layers of the blocks. Measured are: showing other
weights, merged before (`Merged.show`: base, A, base, B, ... in turn), its median and 99th percentile;
building a merged set, over copying the same weights in memory; PEFT's merge_adapter and unmerge_adapter for
the same; how many weights of the base differ in the end, bit by bit; and how often a disk was read.
"""

import statistics
import time
from typing import Any

import peft
import torch
from measure import arguments, report
from serve import RANK, SHAPES, TARGETS

from loralab.models import BaseModel, load_tokenizer
from loralab.serving.merged import Merged
from loralab.serving.places import Fitted, Part, Places
from models import TINY, random_llama


def fitted(places: Places, number: int) -> Fitted:
    """Return a random adapter."""
    random_numbers = torch.Generator().manual_seed(number)
    parts = {}
    for path, place in places.by_path.items():
        if path.rpartition(".")[2] in TARGETS:
            a = torch.randn(RANK, place.inputs, generator=random_numbers).mul_(0.02)
            b = torch.randn(place.outputs, RANK, generator=random_numbers).mul_(0.02)
            parts[path] = Part(a, b, 1.0)
    return Fitted(f"a{number}", f"{number + 1:064x}", parts)


def switches(merged: Merged, adapters: list[Fitted], times: int) -> dict[str, float]:
    """Return the microseconds of a switch: base, A, base, B, A, ... by turns."""
    order = ["", adapters[0].identity, "", adapters[1].identity, adapters[0].identity, adapters[1].identity]
    seconds = sorted(merged.show(order[turn % len(order)]) for turn in range(times))
    seconds = [one for one in seconds if one]
    merged.show("")
    return {
        "modules": len(adapters[0].parts),
        "p50_us": 1e6 * statistics.median(seconds),
        "p99_us": 1e6 * seconds[int(0.99 * (len(seconds) - 1))],
    }


def builds(merged: Merged, places: Places, one: Fitted, rounds: int) -> dict[str, float]:
    """Return the seconds of building a merged set, and of copying the weights that it replaces."""
    built, copied = [], []
    for _ in range(rounds):
        merged.forget(one.identity)
        began = time.perf_counter()
        merged.build(one)
        built.append(time.perf_counter() - began)
        began = time.perf_counter()
        copies = [places.by_path[path].weight.detach().clone() for path in one.parts]
        copied.append(time.perf_counter() - began)
        del copies
    build, copy = statistics.median(built), statistics.median(copied)
    return {"build_seconds": build, "copy_seconds": copy, "ratio": build / copy}


def peft_switches(model: Any, rounds: int) -> dict[str, float]:
    """Return the seconds of PEFT's merge and unmerge."""
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        wrapped.merge_adapter()
        middle = time.perf_counter()
        wrapped.unmerge_adapter()
        seconds.append((middle - began, time.perf_counter() - middle))
    wrapped.unload()
    merges, unmerges = zip(*seconds, strict=True)
    return {"merge_seconds": statistics.median(merges), "unmerge_seconds": statistics.median(unmerges)}


def bits(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def differing(before: list[torch.Tensor], model: torch.nn.Module) -> int:
    """Return how many numbers are not what they were."""
    return sum(int((a != b).sum()) for a, b in zip(before, model.parameters(), strict=True))


def main() -> None:
    flags = arguments(__doc__.partition("\n")[0], parts=tuple(SHAPES))
    torch.set_grad_enabled(False)
    values: dict[str, Any] = {}
    for name, shape in {"tiny": TINY}.items() if flags.quick else SHAPES.items():
        if flags.only not in (None, name) and not flags.quick:
            continue
        model = random_llama(shape, torch.bfloat16).eval()
        base = BaseModel(name, model, load_tokenizer("demo"), torch.bfloat16, torch.device("cpu"))
        places = Places(base.model)
        merged = Merged(places, keep=2)
        before = bits(model)
        adapters = [fitted(places, number) for number in range(2)]
        found: dict[str, Any] = {"building": builds(merged, places, adapters[0], 2 if flags.quick else 5)}
        for one in adapters:
            merged.build(one)
        found["switching"] = switches(merged, adapters, 600 if flags.quick else 20_000)
        found["differing_weights"] = differing(before, model)
        found["peft"] = peft_switches(model, 2 if flags.quick else 3)
        found["peft"]["differing_weights"] = differing(before, model)
        both = found["peft"]["merge_seconds"] + found["peft"]["unmerge_seconds"]
        found["times_as_fast"] = both / (1e-6 * found["switching"]["p50_us"])
        values[name] = found
        if not flags.json:
            show(name, found)
        del model, base, places, merged, adapters, before
    report("switch", {"results": values}, flags)


def show(name: str, found: dict[str, Any]) -> None:
    switching, building, theirs = found["switching"], found["building"], found["peft"]
    seconds, other = theirs["merge_seconds"], theirs["unmerge_seconds"]
    print(f"\n{name}, {switching['modules']} modules, rank {RANK}")
    print(f"switch              p50 {switching['p50_us']:.0f} us, p99 {switching['p99_us']:.0f} us")
    print(f"PEFT                merge {seconds:.3f} s, unmerge {other:.3f} s")
    print(f"                    {found['times_as_fast']:,.0f} times as long as a switch")
    print(f"build a merged set  {building['build_seconds']:.3f} s, {building['ratio']:.2f} of copying")
    print(f"weights that differ {found['differing_weights']}, with PEFT {theirs['differing_weights']:,}")


if __name__ == "__main__":
    main()
