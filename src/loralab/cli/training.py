"""What `train` and `resume` print around a run."""

import time

from loralab.cli.findings import show_findings
from loralab.cli.output import Screen, duration, size
from loralab.cli.progress import accompany, follow, follow_together, runs_flag
from loralab.core.adapter import Adapter
from loralab.data.dataset import Dataset
from loralab.training.events import Finished
from loralab.training.loop import perplexity
from loralab.training.many import ManyRuns
from loralab.training.probe import Probe
from loralab.training.report.report import write_report
from loralab.training.run import Run

__all__ = ["carry_out", "carry_out_together", "show_plan", "show_result"]


_WORTH_A_PROBE = 50
"""A run of fewer steps is done before one has read how long it takes."""


def carry_out(run: Run, screen: Screen) -> None:
    """Show the plan of a run, train it, show its result. Of several processes, the first one does."""
    first = run.processes.first
    if first:
        show_plan(run, screen)
    found = run.probe() if run.checkpoint is None and run.plan.steps >= _WORTH_A_PROBE else None
    if first:
        if found is not None:
            screen.fact("time", time_line(run, found))
        show_result(run, follow(run, screen, found), screen)
        screen.fact("report", str(write_report(run.folder)))
        show_next(run, screen)
    else:
        accompany(run)
    run.processes.leave()


def carry_out_together(many: ManyRuns, screen: Screen) -> None:
    """Show the plans of runs, train them at once, show the results of those that come to their end."""
    for run in many.runs:
        show_plan(run, screen)
        screen.say()
    results: dict[str, Finished] = {}
    try:
        follow_together(many, screen, results)
    finally:
        for run in many.runs:
            if run.folder.name in results:
                screen.say()
                screen.fact("run", str(run.folder.path))
                show_result(run, results[run.folder.name], screen)
                screen.fact("report", str(write_report(run.folder)))
    show_next(many.runs[0], screen)


def show_plan(run: Run, screen: Screen) -> None:
    """Print what is about to happen."""
    config, plan = run.config, run.plan
    trainable, total = run.parameters
    screen.fact("run", str(run.folder.path))
    screen.fact(
        "base",
        f"{config.model}, {total - trainable:,} parameters, {str(run.base.dtype)[6:]} on {run.base.device}",
    )
    screen.fact("data", describe(run.data, config.data, recorded=True))
    if run.eval_data:
        held_out = config.eval_data or f"{config.eval_split:.3g} of these rows"
        screen.fact("eval data", describe(run.eval_data, held_out, recorded=True))
    if run.adapter is not None:
        modules = run.adapter.modules()
        screen.fact("adapter", f"rank {config.r}, alpha {config.lora_alpha:g}, on {len(modules)} modules")
    sum_ = arithmetic(run.adapter) if run.adapter is not None else "All weights of the base."
    screen.fact("trained", f"{trainable:,} of {total:,} parameters ({trainable / total:.2%}). {sum_}")
    every = f"evaluate every {plan.eval_steps}, " if run.eval_data else ""
    screen.fact(
        "plan",
        f"{plan.steps:,} steps of {config.batch_size} examples, "
        f"{plan.steps / plan.steps_per_epoch:.3g} epochs; {every}save every {plan.save_steps}",
    )
    screen.fact("memory", memory_line(run))
    if run.processes.count > 1:
        split = ", the base split over them" if run.processes.in_step else ""
        screen.fact("processes", f"{run.processes.count}, by {run.processes.backend}{split}")
    show_findings(run.findings, screen)


def time_line(run: Run, found: Probe) -> str:
    """Return how long the run will take, in words."""
    plan = run.plan
    more = ""
    if run.eval_data:
        more += f", {plan.evaluations} evaluations of {duration(found.evaluation_seconds)}"
    if run.sampler is not None:
        more += f", {plan.samplings} samplings of {duration(found.sampling_seconds)}"
    return (
        f"about {duration(found.seconds)}: {plan.steps:,} steps of {found.step_seconds:.2g} s "
        f"({found.tokens_per_second:,.0f} tokens/s){more}"
    )


def memory_line(run: Run) -> str:
    """Return what the run is expected to take of the memory, in words."""
    memory = run.memory
    free = "" if memory.free is None else f" of {size(memory.free)} free"
    less = (
        f"; {memory.recomputed} of {memory.layers} layers are computed again to save some"
        if memory.recomputed
        else ""
    )
    short = "" if memory.fits else "; that is too much: --fit chooses what fits, or lower --micro-batch-size"
    return f"about {size(memory.total)} above the base{free}{less}{short}"


def describe(data: Dataset, path: str, *, recorded: bool = False) -> str:
    """Return one line about a data set: what is used, what is not."""
    where = ", see rejected.jsonl" if recorded else ""
    rejected = f"; {len(data.rejected)} rows rejected{where}" if data.rejected else ""
    unused = f"; columns not used: {', '.join(data.unused_columns)}" if data.unused_columns else ""
    template = "" if data.template == "none" else f", template {data.template}"
    return (
        f"{path}: {len(data.examples):,} examples (format {data.format}{template}), {data.tokens:,} tokens, "
        f"{data.trained_tokens:,} of them trained{rejected}{unused}"
    )


def arithmetic(adapter: Adapter) -> str:
    """Return the r(n+k) arithmetic of the largest adapted weight."""
    path, factors = max(
        adapter.modules().items(), key=lambda item: item[1].a_RI.shape[1] * item[1].b_OR.shape[0]
    )
    rank, inputs = factors.a_RI.shape
    outputs = factors.b_OR.shape[0]
    return (
        f"{path.rpartition('.')[2]}: {rank} x ({outputs} + {inputs}) = {rank * (outputs + inputs):,} numbers "
        f"in place of {outputs} x {inputs} = {outputs * inputs:,}"
    )


def show_result(run: Run, finished: Finished, screen: Screen) -> None:
    """Print what came of a run."""
    took = max(finished.seconds, time.time() - run.folder.state().started)
    screen.fact("done", f"in {duration(took)}, peak memory {size(finished.peak_memory)}")
    if finished.base_loss is not None and finished.loss is not None:
        screen.fact(
            "eval loss",
            f"base {finished.base_loss:.4f} -> adapter {finished.loss:.4f} (step {finished.chosen_step}); "
            f"perplexity {perplexity(finished.base_loss):.2f} -> {perplexity(finished.loss):.2f}",
        )
    if finished.ended != "steps":
        screen.fact("ended", f"early, at step {finished.step}: {_ENDED[finished.ended]}")
    screen.fact("model" if run.config.full else "adapter", finished.path)


_ENDED = {
    "stop_at_loss": "the smoothed loss is as low as stop_at_loss asked",
    "early_stopping": "no better evaluation for as long as early_stopping allows",
}


def show_next(run: Run, screen: Screen) -> None:
    """Print the commands to try next."""
    runs = runs_flag(run)
    both = f"--model {run.config.model} --adapter {run.folder.name}{runs}"
    if run.config.full:
        screen.say()
        screen.say(f"next: loralab chat --model {run.folder.model}")
        return
    screen.say()
    screen.say("next:")
    for line in (
        f"loralab chat {both} --compare",
        f"loralab show {run.folder.name}{runs}",
        f"loralab merge {both} --out {run.folder.name}-merged",
    ):
        screen.say(f"  {line}")
