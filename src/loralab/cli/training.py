"""What `train` and `resume` print around a run."""

from loralab.cli.output import Screen, duration, size
from loralab.cli.progress import follow, follow_together, runs_flag
from loralab.data.dataset import Dataset
from loralab.training.events import Finished
from loralab.training.loop import perplexity
from loralab.training.many import ManyRuns
from loralab.training.run import Run

__all__ = ["carry_out", "carry_out_together", "show_plan", "show_result"]


def carry_out(run: Run, screen: Screen) -> None:
    """Show the plan of a run, train it, show its result."""
    show_plan(run, screen)
    show_result(run, follow(run, screen), screen)
    show_next(run, screen)


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
    if run.eval_data and config.eval_data:
        screen.fact("eval data", describe(run.eval_data, config.eval_data, recorded=True))
    screen.fact(
        "adapter",
        f"rank {config.r}, alpha {config.lora_alpha:g}, on {len(run.adapter.modules())} modules",
    )
    screen.fact(
        "trained", f"{trainable:,} of {total:,} parameters ({trainable / total:.2%}). {arithmetic(run)}"
    )
    every = f"evaluate every {plan.eval_steps}, " if run.eval_data else ""
    screen.fact(
        "plan",
        f"{plan.steps:,} steps of {config.batch_size} examples, "
        f"{plan.steps / plan.steps_per_epoch:.3g} epochs; {every}save every {plan.save_steps}",
    )
    screen.fact("memory", memory_line(run))


def memory_line(run: Run) -> str:
    """Return what the run is expected to take of the memory, in words."""
    memory = run.memory
    free = "" if memory.free is None else f" of {size(memory.free)} free"
    less = (
        f"; {memory.recomputed} of {memory.layers} layers are computed again to save some"
        if memory.recomputed
        else ""
    )
    short = "" if memory.fits else "; that is too much: lower --micro-batch-size or --cutoff-length"
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


def arithmetic(run: Run) -> str:
    """Return the r(n+k) arithmetic of the largest adapted weight."""
    path, factors = max(
        run.adapter.modules().items(), key=lambda item: item[1].a_RI.shape[1] * item[1].b_OR.shape[0]
    )
    rank, inputs = factors.a_RI.shape
    outputs = factors.b_OR.shape[0]
    return (
        f"{path.rpartition('.')[2]}: {rank} x ({outputs} + {inputs}) = {rank * (outputs + inputs):,} numbers "
        f"in place of {outputs} x {inputs} = {outputs * inputs:,}"
    )


def show_result(run: Run, finished: Finished, screen: Screen) -> None:
    """Print what came of a run."""
    screen.fact("done", f"in {duration(finished.seconds)}, peak memory {size(finished.peak_memory)}")
    if finished.base_loss is not None and finished.loss is not None:
        screen.fact(
            "eval loss",
            f"base {finished.base_loss:.4f} -> adapter {finished.loss:.4f} (step {finished.chosen_step}); "
            f"perplexity {perplexity(finished.base_loss):.2f} -> {perplexity(finished.loss):.2f}",
        )
    screen.fact("adapter", finished.path)


def show_next(run: Run, screen: Screen) -> None:
    """Print the commands to try next."""
    runs = runs_flag(run)
    both = f"--model {run.config.model} --adapter {run.folder.name}{runs}"
    screen.say()
    screen.say("next:")
    for line in (
        f"loralab chat {both} --compare",
        f"loralab show {run.folder.name}{runs}",
        f"loralab merge {both} --out {run.folder.name}-merged",
    ):
        screen.say(f"  {line}")
