"""From settings to runs that are ready to go: the one place that puts the parts together."""

import contextlib
import dataclasses
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from loralab.data.mixture import parse_sources
from loralab.errors import ConfigError
from loralab.files import new_folder, write_json, write_text
from loralab.models import BaseModel
from loralab.models.hardware import choose_device
from loralab.training.checkpoint import latest
from loralab.training.compiling import compile_layers
from loralab.training.config import RunConfig
from loralab.training.data import load_both
from loralab.training.devices import ALONE, Processes, join
from loralab.training.findings import refuse
from loralab.training.fitting import fit, fit_base, keep_less, plan_memory
from loralab.training.folder import RunFolder, find_run, unused_name
from loralab.training.habits import template_of
from loralab.training.optimizers import make_optimizer
from loralab.training.prepare import causal_lm, completed, open_base, with_settings
from loralab.training.report.measuring import read_general
from loralab.training.reporters import check_reporters
from loralab.training.run import Run
from loralab.training.samples import Sampler, read_prompts
from loralab.training.sharding import check_shard, split_base
from loralab.training.trainee import make_trainees
from loralab.training.unchanged import check_unchanged, settings_to_keep

__all__ = ["assemble", "make_folders", "named", "plan_of", "ready", "resume", "start"]


def start(config: RunConfig, *, overwrite: bool = False, fitted: bool = False) -> Run:
    """Load and check everything for a new run, and make its folder. See `start_together` for several.

    Nothing is written before all checks have passed.

    Raises:
        ConfigError: a setting does not hold for this model or data, or the name is taken.
        DataError, ModelError, TargetError: as the parts raise them.
    """
    processes = join(choose_device())
    if config.shard and processes.count == 1:
        raise ConfigError(
            "shard splits the base over several processes, and there is one: start it with torchrun or "
            "accelerate launch, or leave it out."
        )
    run = ready(config, overwrite=overwrite, fitted=fitted, processes=processes)
    processes.of_first(lambda: make_folders([run], overwrite=overwrite))
    return run


def ready(
    config: RunConfig, *, overwrite: bool = False, fitted: bool = False, processes: Processes = ALONE
) -> Run:
    """Load and check everything for a new run, and write nothing.

    With `fitted`, micro-batch, recomputation and quantization are chosen so that it fits the memory.
    Raises as `start`.
    """

    def wanted() -> tuple[RunConfig, RunFolder]:
        settings, folder = named(config, overwrite=overwrite)
        return fit_base(settings) if fitted else settings, folder

    return assemble([processes.of_first(wanted)], fitted=fitted, processes=processes)[0]


def resume(name: str, runs: str = "runs") -> Run:
    """Load everything for going on with the run `name` from its newest checkpoint.

    Raises:
        ConfigError: there is no such run, it is running, or it is finished.
        CheckpointError: its settings or the data have changed since it began.
    """
    processes = join(choose_device())
    wanted = processes.of_first(lambda: _interrupted(name, runs))
    run = assemble([wanted], processes=processes)[0]
    run.checkpoint = processes.of_first(lambda: latest(run.folder.checkpoints))
    processes.together(lambda: check_unchanged(run))
    return run


def _interrupted(name: str, runs: str) -> tuple[RunConfig, RunFolder]:
    folder = find_run(runs, name)
    state = folder.state()
    if state.alive:
        raise ConfigError(f"run {name!r} is running now, as process {state.pid}.")
    if state.state == "finished":
        raise ConfigError(f"run {name!r} is finished; its adapter is {folder.adapter}.")
    return folder.config(), folder


def named(config: RunConfig, *, overwrite: bool, taken: Collection[str] = ()) -> tuple[RunConfig, RunFolder]:
    """Return the settings with the run's name, and the folder that it may take.

    Raises:
        ConfigError: the base or the data was not given, or there is a run of that name.
    """
    for setting in ("model", "data"):
        if not getattr(config, setting):
            raise ConfigError(
                f'no {setting} was given; add --{setting}, or {setting} = "..." to the TOML file.'
            )
    name = config.name or unused_name(config.runs, parse_sources(config.data)[0].path.stem, taken)
    folder = RunFolder(Path(config.runs) / name)
    folder.check_free(overwrite=overwrite)
    return config.model_copy(update={"name": name}), folder


def assemble(
    wanted: Sequence[tuple[RunConfig, RunFolder]],
    *,
    fitted: bool = False,
    base: BaseModel | None = None,
    processes: Processes = ALONE,
) -> list[Run]:
    """Return a run for each of the settings, all on one base model that is loaded once, or given.

    Every adapter begins as it would alone. With `fitted`, what the first one's settings leave open is chosen
    so that it fits the memory. Raises as `start`.
    """
    first, count = wanted[0][0], processes.count
    check_shard(first)
    processes = dataclasses.replace(processes, in_step=first.shard and count > 1)
    opened = base or processes.together(lambda: open_base(first, on_host=processes.in_step))
    configs = processes.together(lambda: [completed(config, opened) for config, _ in wanted])
    both = processes.in_turn(lambda: [load_both(config, opened.tokenizer) for config in configs])
    trainees = processes.together(lambda: make_trainees(configs, opened))
    processes.adopt([p for p in trainees[0].model.parameters() if p.requires_grad])
    base = split_base(opened, processes) if processes.in_step else opened
    task = causal_lm(base)
    tasks = [with_settings(task, config) for config in configs]
    if fitted:
        found = fit(configs[0], trainees[0].model, base, task, both[0][0])
        configs[0] = processes.of_first(lambda: found)
    shares = [(config.shared_by(count), data) for config, (data, _) in zip(configs, both, strict=True)]
    memory = plan_memory(trainees[0].model, base, task, shares)
    if memory.recomputed or configs[0].activation_checkpointing:
        keep_less(base, memory.recomputed)
    if configs[0].compile:
        compile_layers(base.model)
    runs = [
        Run(folder, config, base, trainee, task, data, eval_data, memory, processes=processes)
        for (_, folder), config, trainee, task, (data, eval_data) in zip(
            wanted, configs, trainees, tasks, both, strict=True
        )
    ]
    for run in runs:
        processes.together(partial(_try_optimizer, run))
        processes.together(partial(check_reporters, run.config.report_to))
        run.sampler = processes.together(partial(_sampler, run))
        run.general = processes.together(partial(read_general, run.config.general_data, base))
    return runs


def _try_optimizer(run: Run) -> None:
    """Make the optimizer once, so that what it refuses is known before anything is written."""
    with run.trainee.alone():
        make_optimizer(run.model, run.config)


def _sampler(run: Run) -> Sampler | None:
    if run.config.sample_prompts is None:
        return None
    prompts = read_prompts(Path(run.config.sample_prompts))
    tokenizer = run.base.tokenizer
    return Sampler(prompts, run.model, tokenizer, template_of(run.data, tokenizer))


def make_folders(runs: Sequence[Run], *, overwrite: bool = False) -> None:
    """Make the folders of new runs.

    Raises:
        DataError: what is found in one of them cannot be trained on.
        ConfigError: another process has made one of them meanwhile.
    """
    for run in runs:
        refuse(run.findings)
    for run in runs:
        _make_folder(run, overwrite=overwrite)


def _make_folder(run: Run, *, overwrite: bool) -> None:
    rejected = [dataclasses.asdict(r) for d in (run.data, run.eval_data) if d for r in d.rejected]
    with contextlib.ExitStack() as old:
        replace = run.folder.path.exists()
        if replace:
            run.folder.check_free(overwrite=overwrite)
            old.enter_context(run.folder.hold())
        try:
            with new_folder(run.folder.path, replace=replace) as temporary:
                write_text(temporary / "config.toml", run.config.to_toml())
                write_json(temporary / "plan.json", plan_of(run))
                RunFolder(temporary).write_lines("rejected.jsonl", rejected)
                run.made = temporary.stat()
        except FileExistsError:
            run.folder.check_free(overwrite=False)
            raise ConfigError(f"{run.folder.path} is in the way; choose another --name or --runs.") from None


def plan_of(run: Run) -> dict[str, object]:
    """Return what ``plan.json`` says of a run: what was worked out before it begins."""
    trainable, total = run.parameters
    return {
        **dataclasses.asdict(run.plan),
        "examples": len(run.data.examples),
        "rejected": len(run.data.rejected),
        "tokens": run.data.tokens,
        "trained_tokens": run.data.trained_tokens,
        "format": run.data.format,
        "template": run.data.template,
        "trainable_parameters": trainable,
        "parameters": total,
        "dtype": str(run.base.dtype).removeprefix("torch."),
        "isolation": run.task.isolation,
        "memory": dataclasses.asdict(run.memory),
        "rows": run.data.rows,
        "used": run.data.used,
        "cut": run.data.cut,
        "duplicates": run.data.duplicates,
        "findings": [dataclasses.asdict(finding) for finding in run.findings],
        "data_fingerprint": run.data.fingerprint,
        "eval_fingerprint": run.eval_data.fingerprint if run.eval_data else None,
        "settings": settings_to_keep(run.config),
    }
