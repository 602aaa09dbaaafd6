"""Time one training step against PEFT and full fine-tuning: python benchmarks/train_step.py [--only PART].

Around one reference case each table changes one thing; contestants.py says who takes part and what "frozen"
and "matrix products" mean. Of two steps that follow each other the second is timed.
The error of a case is its loss after the last step. The part "1.1B" is measured
only when it is asked for.
"""

import gc
from dataclasses import replace

import torch
from contestants import LIMITS, LORA, Setup, Work
from measure import Case, Table, arguments, race, report, show

from models import GPT2, QWEN2, TINY, assets


def parts(setup: Setup) -> dict[str, list[Setup]]:
    """Return the tables by the names that --only takes, the reference first."""
    lora = replace(setup, limits=False)
    short = replace(setup, rows=max(1, setup.rows // 4))
    tiny = setup.shape is TINY
    return {
        "reference": [setup],
        "float32": [replace(setup, dtype=torch.float32)],
        "rank": [replace(lora, rank=setup.rank // 2), replace(lora, rank=setup.rank * 4)],
        "targets": [replace(lora, targets=("q_proj", "v_proj"))],
        "tokens": [replace(setup, rows=1, tokens=setup.tokens // 2), short],
        "models": [
            replace(short, model="gpt2", shape=TINY if tiny else GPT2),
            replace(short, model="qwen2", shape=TINY if tiny else QWEN2),
            *([replace(short, model="85M")] if assets() and not tiny else []),
        ],
        "1.1B": [replace(short, model="1.1B")],
    }


def measure(setup: Setup, rounds: int) -> Table:
    work = Work(setup)
    contestants = LORA | LIMITS if setup.limits else LORA
    return race({name: Case(make(work)) for name, make in contestants.items()}, rounds, settle=True)


def main() -> None:
    quick = Setup(rows=2, tokens=16, rank=4, shape=TINY)
    flags = arguments("Time a training step against PEFT and full fine-tuning.", list(parts(quick)))
    found = parts(quick if flags.quick else Setup())
    chosen = [flags.only] if flags.only else [part for part in found if part != "1.1B"]
    if assets() is None and "models" in chosen and not flags.json:
        print("left out: stories260K grown to 85M; it needs LORALAB_ASSETS, the folder of test assets")
    tables: dict[str, Table] = {}
    rounds = dict.fromkeys(chosen, 2 if flags.quick else 3)
    if "reference" in chosen and not flags.quick:
        rounds["reference"] = 5
    for part in chosen:
        for setup in found[part]:
            tables[setup.title] = measure(setup, rounds[part])
            gc.collect()
            if not flags.json:
                show(setup.title, tables[setup.title], "loss")
    report("train_step", {"rounds": rounds, "seconds": tables}, flags)


if __name__ == "__main__":
    main()
