"""Measure the memory of training steps above the weights: python benchmarks/memory.py [--only PART].

Every contestant runs in a process of its own, since memory that one has used shows in the next. It loads its
model, notes what is resident, and takes three steps; its peak is the most that was resident from there on,
less what it noted. Adapter, gradients and AdamW's states count. All run with glibc's MALLOC_MMAP_THRESHOLD_
at 1 MiB and MALLOC_ARENA_MAX=1, so that memory that is freed is gone. contestants.py says who takes part;
"checkpointing" is that of activations. Ratios are to PEFT with dropout 0.05. It takes Linux.
"""

import multiprocessing
import os
import sys
from dataclasses import replace

import torch
from contestants import CONTESTANTS, Setup
from footprint import STEPS, footprint
from measure import STATUS, Table, arguments, report

from models import GPT2, LLAMA, TINY

NAMES = [name for name in CONTESTANTS if name not in ("frozen, our loss", "matrix products")]
REFERENCE = "peft, dropout 0.05"
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_ARENA_MAX": "1"}
PARTS = {
    "bfloat16": Setup(),
    "vocabulary": Setup(shape=replace(LLAMA, vocabulary=GPT2.vocabulary)),
    "float32": Setup(dtype=torch.float32),
}
QUICK = Setup(rows=2, tokens=16, rank=4, shape=TINY)


def measure(setup: Setup) -> Table:
    """Return by contestant: peak, ratio to `REFERENCE`, weights and the loss as the error."""
    # A server that has imported everything is forked: a process for each, and no wait for imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["footprint"])
    table: Table = {}
    for name in NAMES:
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=footprint, args=(name, setup, send))
        process.start()
        send.close()
        try:
            table[name] = receive.recv()
        except EOFError:
            raise SystemExit(f"{name}: its process died; was there too little memory?") from None
        process.join()
    for row in table.values():
        row["ratio"] = row["peak"] / table[REFERENCE]["peak"]
    return table


def show(title: str, table: Table) -> None:
    print(f"\n{title}\n{'':38} {'peak':>12} {'ratio':>8} {'weights':>12}   loss")
    for name, row in table.items():
        loss = f"{row['error']:.6f}" if "error" in row else ""
        sizes = f"{row['peak']:8.1f} MiB {row['ratio']:8.2f} {row['weights']:8.1f} MiB"
        print(f"{name:38} {sizes}   {loss}".rstrip())


def main() -> None:
    flags = arguments("Measure the memory of training steps above the weights.", list(PARTS))
    if not STATUS.exists():
        raise SystemExit(f"memory.py reads {STATUS}: it takes Linux.")
    # Both are read when the server starts; before Python 3.13 it does not hear of sys.path otherwise.
    os.environ.update(MALLOC, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    chosen = [flags.only] if flags.only else ["bfloat16"] if flags.quick else list(PARTS)
    tables: dict[str, Table] = {}
    for part in chosen:
        setup = QUICK if flags.quick else PARTS[part]
        title = f"{setup.title}, vocabulary {setup.shape.vocabulary}"
        tables[title] = measure(setup)
        if not flags.json:
            show(title, tables[title])
    report("memory", {"steps": STEPS, "malloc": MALLOC, "tables": tables}, flags)


if __name__ == "__main__":
    main()
