"""A run from its settings to its adapter: the one place that puts the parts together."""

import dataclasses
import resource
import shutil
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from loralab.adapters import PeftModel, get_peft_model
from loralab.adapters.habits import Habits, write_habits
from loralab.core.config import LoraConfig
from loralab.data.dataset import Dataset, load_dataset
from loralab.errors import CheckpointError, ConfigError, LoralabError, TrainingError
from loralab.files import new_folder, write_json, write_text
from loralab.models import BaseModel, load_base
from loralab.training.card import card
from loralab.training.checkpoint import Progress, latest, load_checkpoint, save_checkpoint
from loralab.training.config import RunConfig
from loralab.training.events import Event, Finished, Started
from loralab.training.folder import RunFolder, RunState, find_run, unused_name
from loralab.training.isolation import find_isolation
from loralab.training.loop import Plan, evaluate, make_optimizer, plan, train
from loralab.training.tasks.causal_lm import CausalLM

__all__ = ["Run", "resume", "start"]

_DEFAULT_CUTOFF = 512
_BEAT = 2.0


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
    checkpoint: Path | None
    """Where to go on from, if anywhere."""

    @property
    def plan(self) -> Plan:
        """When the run will do what."""
        return plan(self.config, len(self.data.examples))

    @property
    def habits(self) -> Habits:
        """How the adapter is trained to be spoken to."""
        template = "auto" if self.data.template == "none" else self.data.template
        return Habits(self.data.format, template)

    def events(self) -> Generator[Event, None, None]:
        """Train, and yield what happens; every event is in the run's folder before it is yielded.

        Closing the generator saves a checkpoint of the last whole step and marks the run as interrupted.

        Raises:
            TrainingError: the loss is not finite, or the adapter came out without any effect.
            CheckpointError: a checkpoint cannot be written or read.
        """
        state = RunState(started=time.time(), steps=self.plan.steps)
        beat = 0.0
        self.folder.write_state(state)
        try:
            for event in self._train():
                self.folder.append(event)
                loss = getattr(event, "loss", None)
                state = dataclasses.replace(state, step=event.step, loss=state.loss if loss is None else loss)
                if isinstance(event, Finished):
                    state = dataclasses.replace(state, state="finished")
                if state.state == "finished" or time.monotonic() - beat > _BEAT:
                    self.folder.write_state(state)
                    beat = time.monotonic()
                yield event
        except GeneratorExit:
            if state.state != "finished":
                self.folder.write_state(dataclasses.replace(state, state="interrupted"))
            raise
        except LoralabError as error:
            self.folder.write_state(dataclasses.replace(state, state="failed", note=str(error)))
            raise

    def _train(self) -> Iterator[Event]:
        held_out = self.eval_data.examples if self.eval_data else ()
        optimizer = make_optimizer(self.model, self.config)
        progress = Progress()
        if self.checkpoint:
            progress = load_checkpoint(self.checkpoint, self.model, optimizer)
        elif held_out:
            with self.model.disable_adapter():
                progress.base_loss, _ = evaluate(self.model, self.task, held_out, self.config.micro)
        trainable, total = self.model.get_nb_trainable_parameters()
        steps, examples = self.plan.steps, len(self.data.examples)
        yield Started(progress.step, steps, examples, trainable, total, self.task.isolation)

        def save() -> str:
            path = self.folder.checkpoint(progress.step)
            save_checkpoint(path, self.model, optimizer, progress)
            self._prune(progress)
            return str(path)

        data = (self.data.examples, held_out)
        with closing(train(self.model, self.task, data, self.config, optimizer, progress, save)) as events:
            try:
                yield from events
            except GeneratorExit:
                save()
                raise
        yield self._finish(progress)

    def _prune(self, progress: Progress) -> None:
        """Delete all checkpoints but the newest few and the best."""
        paths = sorted(self.folder.checkpoints.glob("[0-9]*"))
        for path in paths[: -self.config.keep_checkpoints]:
            if path.name != f"{progress.best_step or 0:06d}":
                shutil.rmtree(path)

    def _finish(self, progress: Progress) -> Finished:
        chosen = progress.best_step or progress.step
        adapter = self.model.base_model.adapter("default")
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
    """Load and check everything for a new run, and make its folder.

    Nothing is written before all checks have passed.

    Raises:
        ConfigError: a setting does not hold for this model or data, or the name is taken.
        DataError, ModelError, TargetError: as the parts raise them.
    """
    for setting in ("model", "data"):
        if not getattr(config, setting):
            raise ConfigError(
                f'no {setting} was given; add --{setting}, or {setting} = "..." to the TOML file.'
            )
    name = config.name or unused_name(config.runs, Path(config.data).stem)
    config = config.model_copy(update={"name": name})
    folder = RunFolder(Path(config.runs) / name)
    if folder.path.exists() and not overwrite:
        folder.create(config)
    if overwrite and folder.path.exists() and folder.state().state == "running":
        raise ConfigError(f"run {name!r} is running now, as process {folder.state().pid}; stop it first.")
    run = _assemble(config, folder, None)
    if overwrite and folder.path.exists():
        shutil.rmtree(folder.path)
    folder.create(run.config)
    rejected = [dataclasses.asdict(r) for d in (run.data, run.eval_data) if d for r in d.rejected]
    folder.write_lines("rejected.jsonl", rejected)
    write_json(folder.path / "plan.json", _plan_of(run))
    return run


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
    return _assemble(folder.config(), folder, latest(folder.checkpoints))


def _assemble(config: RunConfig, folder: RunFolder, checkpoint: Path | None) -> Run:
    base = load_base(config.model, config.dtype, allow_pickle=config.allow_pickle)
    config = config.model_copy(update={"cutoff_length": _cutoff(config, base)})
    data = load_data(config.data, config, base)
    eval_data = load_data(config.eval_data, config, base) if config.eval_data else None
    _check_unchanged(folder, data)
    torch.manual_seed(config.seed)
    model = get_peft_model(
        base.model,
        LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=config.targets,
            task_type="CAUSAL_LM",
            base_model_name_or_path=config.model,
        ),
    )
    return Run(folder, config, base, model, causal_lm(base), data, eval_data, checkpoint)


def causal_lm(base: BaseModel) -> CausalLM:
    """Return next-token prediction as `base` needs it. Raises as `find_isolation`."""
    vocabulary = base.model.get_input_embeddings().num_embeddings
    isolation = find_isolation(base.model, vocabulary, base.device, base.dtype)
    return CausalLM(base.tokenizer.pad_token_id, isolation, base.device, base.dtype)


def load_data(path: str, config: RunConfig, base: BaseModel) -> Dataset:
    """Return the examples of a data file under the run's settings. Raises as `load_dataset`."""
    return load_dataset(
        Path(path),
        base.tokenizer,
        cutoff_length=_cutoff(config, base),
        overlap_length=config.overlap_length,
        format=config.format,
        template=config.template,
    )


def _cutoff(config: RunConfig, base: BaseModel) -> int:
    positions = base.max_positions or sys.maxsize
    if config.cutoff_length is None:
        return min(_DEFAULT_CUTOFF, positions)
    if config.cutoff_length > positions:
        raise ConfigError(
            f"cutoff_length is {config.cutoff_length}, but {config.model} has {positions} positions; "
            f"use --cutoff-length {positions} or less."
        )
    return config.cutoff_length


def _check_unchanged(folder: RunFolder, data: Dataset) -> None:
    """Hold the data to what the run began with: with other rows it would be another run."""
    before = folder.plan().get("data_fingerprint")
    if before is not None and before != data.fingerprint:
        raise CheckpointError(
            f"the training data of run {folder.name!r} has changed since it began, so it cannot go on as "
            "it was. Put the file back, or start a new run."
        )


def _plan_of(run: Run) -> dict[str, object]:
    trainable, total = run.model.get_nb_trainable_parameters()
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
        "data_fingerprint": run.data.fingerprint,
    }


def peak_memory() -> int:
    """Return the largest resident memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
