"""A run from its settings to its adapter: the one place that puts the parts together."""

import dataclasses
import shutil
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from loralab.adapters import PeftModel, get_peft_model
from loralab.adapters.habits import Habits, write_habits
from loralab.core.adapter import Adapter
from loralab.data.dataset import Dataset
from loralab.errors import CheckpointError, ConfigError, LoralabError, TrainingError
from loralab.files import new_folder, write_json, write_text
from loralab.models import BaseModel
from loralab.training.card import card
from loralab.training.checkpoint import Progress, latest, load_checkpoint, prune, save_checkpoint
from loralab.training.compiling import compile_layers
from loralab.training.config import RunConfig
from loralab.training.events import Event, Finished, Started
from loralab.training.folder import RunFolder, find_run, unused_name
from loralab.training.forecast import Forecast
from loralab.training.loop import Course, Plan, alone, evaluate, make_optimizer, plan, train
from loralab.training.prepare import (
    adapter_config,
    causal_lm,
    keep_less,
    load_data,
    open_base,
    plan_memory,
    with_cutoff,
)
from loralab.training.record import Recorder, peak_memory
from loralab.training.tasks.causal_lm import CausalLM

__all__ = ["Run", "assemble", "make_folders", "named", "resume", "start"]


@dataclass
class Run:
    """A run that is ready to go: everything is loaded and checked, nothing is trained yet."""

    folder: RunFolder
    config: RunConfig
    base: BaseModel
    model: PeftModel
    task: CausalLM
    data: Dataset
    eval_data: Dataset | None
    memory: Forecast
    checkpoint: Path | None = None
    """Where to go on from, if anywhere."""
    adapter_name: str = "default"
    """The name of its adapter on the model, which runs that train together share."""

    @property
    def plan(self) -> Plan:
        """When the run will do what."""
        return plan(self.config, len(self.data.examples))

    @property
    def habits(self) -> Habits:
        """How the adapter is trained to be spoken to."""
        template = "auto" if self.data.template == "none" else self.data.template
        return Habits(self.data.format, template)

    @property
    def adapter(self) -> Adapter:
        """The adapter as it is now; its tensors are the model's own, not copies."""
        return self.model.base_model.adapter(self.adapter_name)

    @property
    def parameters(self) -> tuple[int, int]:
        """The numbers of trainable parameters, and of those of the base and the adapter together."""
        everyones, total = self.model.get_nb_trainable_parameters()
        with alone(self.model, self.adapter_name):
            own, _ = self.model.get_nb_trainable_parameters()
        return own, total - everyones + own

    def events(self) -> Generator[Event, None, None]:
        """Train, and yield what happens; every event is in the run's folder before it is yielded.

        Closing the generator saves a checkpoint of the last whole step and marks the run as interrupted.

        Raises:
            TrainingError: the loss is not finite, or the adapter came out without any effect.
            CheckpointError: a checkpoint cannot be written or read.
            ConfigError: another process is at this run.
        """
        with self.folder.hold():
            recorder = Recorder(self.folder, self.plan.steps)
            try:
                with closing(self._train()) as events:
                    for event in events:
                        recorder.add(event)
                        yield event
            except GeneratorExit:
                recorder.interrupt()
                raise
            except LoralabError as error:
                recorder.fail(error)
                raise

    def _train(self) -> Generator[Event, None, None]:
        course = self.course()
        yield self.started(course.progress)
        with closing(train(course)) as events:
            try:
                yield from events
            except GeneratorExit:
                course.save()
                raise
        yield self.finish(course.progress)

    def course(self) -> Course:
        """Return the way through the steps, from the first one or the checkpoint on.

        Raises:
            CheckpointError: the checkpoint cannot be read.
        """
        held_out = self.eval_data.examples if self.eval_data else ()
        with alone(self.model, self.adapter_name):
            optimizer = make_optimizer(self.model, self.config)
        progress = Progress()
        if self.checkpoint:
            progress = load_checkpoint(self.checkpoint, self.model, optimizer, self.adapter_name)
        elif held_out:
            with self.model.disable_adapter():
                progress.base_loss, _ = evaluate(self.model, self.task, held_out, self.config.micro)

        def save() -> str:
            path = self.folder.checkpoint(progress.step)
            save_checkpoint(path, self.model, optimizer, progress, self.adapter_name)
            prune(self.folder.checkpoints, self.config.keep_checkpoints, progress.best_step)
            return str(path)

        data = (self.data.examples, held_out)
        return Course(self.model, self.task, data, self.config, optimizer, progress, save, self.adapter_name)

    def started(self, progress: Progress) -> Started:
        """Return the run's first event."""
        steps, examples = self.plan.steps, len(self.data.examples)
        return Started(progress.step, steps, examples, *self.parameters, self.task.isolation)

    def finish(self, progress: Progress) -> Finished:
        """Write the adapter of the best step, or the last, and return the run's last event.

        Raises:
            TrainingError: it is without any effect.
        """
        chosen = progress.best_step or progress.step
        adapter = self.adapter
        if not any(factors.norm() > 0 for factors in adapter.modules().values()):
            raise TrainingError(
                "the trained adapter changes nothing: every B is still zero. Is the learning rate too low?"
            )
        with new_folder(self.folder.adapter) as temporary:
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copyfile(self.folder.checkpoint(chosen) / name, temporary / name)
            write_habits(temporary, self.habits)
            write_text(temporary / "README.md", card(self.config, self.data, progress, adapter.config))
        return Finished(
            progress.step,
            str(self.folder.adapter),
            chosen,
            progress.base_loss,
            progress.best_loss,
            progress.seconds,
            peak_memory(),
        )


def start(config: RunConfig, *, overwrite: bool = False) -> Run:
    """Load and check everything for a new run, and make its folder. See `start_together` for several.

    Nothing is written before all checks have passed.

    Raises:
        ConfigError: a setting does not hold for this model or data, or the name is taken.
        DataError, ModelError, TargetError: as the parts raise them.
    """
    runs = assemble([named(config, overwrite=overwrite)])
    make_folders(runs)
    return runs[0]


def resume(name: str, runs: str = "runs") -> Run:
    """Load everything for going on with the run `name` from its newest checkpoint.

    Raises:
        ConfigError: there is no such run, it is running, or it is finished.
        CheckpointError: the data has changed since it began.
    """
    folder = find_run(runs, name)
    state = folder.state()
    if state.state == "running":
        raise ConfigError(f"run {name!r} is running now, as process {state.pid}.")
    if state.state == "finished":
        raise ConfigError(f"run {name!r} is finished; its adapter is {folder.adapter}.")
    run = assemble([(folder.config(), folder)])[0]
    run.checkpoint = latest(folder.checkpoints)
    _check_unchanged(run)
    return run


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
    name = config.name or unused_name(config.runs, Path(config.data).stem, taken)
    folder = RunFolder(Path(config.runs) / name)
    folder.check_free(overwrite=overwrite)
    return config.model_copy(update={"name": name}), folder


def assemble(wanted: Sequence[tuple[RunConfig, RunFolder]]) -> list[Run]:
    """Return a run for each of the settings, all on one base model that is loaded once.

    Every adapter begins as it would alone. Raises as `start`.
    """
    base = open_base(wanted[0][0])
    configs = [with_cutoff(config, base) for config, _ in wanted]
    data = [load_data(config.data, config, base) for config in configs]
    eval_data = [load_data(c.eval_data, c, base) if c.eval_data else None for c in configs]
    torch.manual_seed(configs[0].seed)
    model = get_peft_model(base.model, adapter_config(configs[0]))
    names = ["default"]
    for config in configs[1:]:
        names.append(f"run{len(names)}")  # a run's own name may have dots in it
        torch.manual_seed(config.seed)
        model.add_adapter(names[-1], adapter_config(config))
    model.base_model.set_adapter(names)
    task = causal_lm(base)
    memory = plan_memory(model, base, task, list(zip(configs, data, strict=True)))
    if memory.recomputed or configs[0].activation_checkpointing:
        keep_less(base, memory.recomputed)
    if configs[0].compile:
        compile_layers(base.model)
    return [
        Run(folder, config, base, model, task, rows, held_out, memory, adapter_name=name)
        for (_, folder), config, rows, held_out, name in zip(
            wanted, configs, data, eval_data, names, strict=True
        )
    ]


def make_folders(runs: Sequence[Run]) -> None:
    """Make the folders of new runs."""
    for run in runs:
        rejected = [dataclasses.asdict(r) for d in (run.data, run.eval_data) if d for r in d.rejected]
        with new_folder(run.folder.path) as temporary:
            write_text(temporary / "config.toml", run.config.to_toml())
            write_json(temporary / "plan.json", _plan_of(run))
            RunFolder(temporary).write_lines("rejected.jsonl", rejected)


def _check_unchanged(run: Run) -> None:
    """Hold the data to what the run began with: with other rows it would be another run."""
    before = run.folder.plan()
    for file, data, key in (
        (run.config.data, run.data, "data_fingerprint"),
        (run.config.eval_data, run.eval_data, "eval_fingerprint"),
    ):
        if data and before.get(key) not in (None, data.fingerprint):
            raise CheckpointError(
                f"{file} has changed since run {run.folder.name!r} began, so the run cannot go on as it was. "
                "Put the file back, or start a new run."
            )


def _plan_of(run: Run) -> dict[str, object]:
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
        "data_fingerprint": run.data.fingerprint,
        "eval_fingerprint": run.eval_data.fingerprint if run.eval_data else None,
    }
