"""What `plan` prints: everything that a run would do and take."""

import dataclasses
import math

from loralab.cli.output import Screen, size
from loralab.cli.training import show_plan, time_line
from loralab.core.adapter import Adapter
from loralab.training.probe import Probe
from loralab.training.run import Run
from loralab.training.starting import plan_of

__all__ = ["show_whole_plan"]


def show_whole_plan(run: Run, screen: Screen) -> None:
    """Print the plan of a run with its arithmetic, and what a probe tells of its time and memory."""
    found = run.probe()
    settings = run.config.model_dump(mode="json")
    screen.data({**plan_of(run), "settings": settings, "probe": dataclasses.asdict(found)})
    show_plan(run, screen)
    screen.fact("time", time_line(run, found))
    screen.fact("disk", _disk_line(run))
    screen.say()
    if run.adapter is not None:
        screen.table(
            ("adapted weight", "modules", "[out, in]", "r (out + in)", "numbers"), _sums(run.adapter)
        )
        screen.say()
    screen.table(("memory", "", "share"), _memory(run, found))
    for advice in _advice(run):
        screen.say(advice)


def _sums(adapter: Adapter) -> list[tuple[str, ...]]:
    """Return a row for each kind of weight: how many there are, and what each gets."""
    kinds: dict[tuple[str, int, int, int], int] = {}
    for path, factors in adapter.modules().items():
        (rank, inputs), outputs = factors.a_RI.shape, factors.b_OR.shape[0]
        key = (path.rpartition(".")[2], rank, outputs, inputs)
        kinds[key] = kinds.get(key, 0) + 1
    rows: list[tuple[str, ...]] = []
    for (name, rank, outputs, inputs), count in kinds.items():
        each = rank * (outputs + inputs)
        sum_ = f"{rank} x ({outputs} + {inputs}) = {each:,}"
        rows.append((name, str(count), f"[{outputs}, {inputs}]", sum_, f"{count * each:,}"))
    return rows


def _memory(run: Run, found: Probe) -> list[tuple[str, ...]]:
    """Return a row for each part of the memory, with a bar of its share."""
    memory = run.memory
    base = max(0, found.peak_memory - memory.total)
    parts = {
        "the program and the base": base,
        "gradients and optimizer": memory.training,
        "activations": memory.activations,
        "held for a while": memory.workspace,
    }
    total = sum(parts.values())
    rows = [(name, size(part), "#" * math.ceil(24 * part / total)) for name, part in parts.items()]
    free = [] if memory.free is None else [("free now", size(memory.free), "")]
    return [*rows, ("measured peak", size(found.peak_memory), ""), *free]


def _disk_line(run: Run) -> str:
    config = run.config
    parameters = run.parameters[0]
    one = 4 * parameters * 3
    kept = config.keep_checkpoints + (1 if run.eval_data else 0)
    return f"about {size(kept * one + 4 * parameters)}: {kept} checkpoints of {size(one)}, and the result"


def _advice(run: Run) -> list[str]:
    if run.memory.fits:
        return []
    return ["", "This does not fit. --fit chooses a micro-batch, recomputed layers or 4 bits that do."]
