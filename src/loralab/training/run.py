"""A run from its settings to its adapter: the one place that puts the parts together."""

import dataclasses
import resource
import shutil
import sys
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from loralab.adapters import PeftModel, get_peft_model
from loralab.adapters.habits import Habits, write_habits
from loralab.adapters.kbit import checkpoint_activations
from loralab.core.config import LoraConfig
from loralab.data.dataset import Dataset, load_dataset
from loralab.errors import CheckpointError, ConfigError, LoralabError, TrainingError
from loralab.files import new_folder, write_json, write_text
from loralab.models import BaseModel, load_base
from loralab.models.positions import choose_cutoff
from loralab.training.card import card
from loralab.training.checkpoint import Progress, complete, latest, load_checkpoint, save_checkpoint
from loralab.training.config import RunConfig
from loralab.training.events import Event, Finished, Started
from loralab.training.folder import RunFolder, RunState, find_run, unused_name
from loralab.training.isolation import find_isolation
from loralab.training.loop import Plan, evaluate, make_optimizer, plan, train
from loralab.training.tasks.causal_lm import CausalLM
from loralab.training.tasks.head import head_is_last

__all__ = ["Run", "resume", "start"]

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
            ConfigError: another process is at this run.
        """
        with self.folder.hold():
            yield from self._recorded()

    def _recorded(self) -> Generator[Event, None, None]:
        state = RunState(started=time.time(), steps=self.plan.steps)
        beat = 0.0
        self.folder.write_state(state)
        try:
            with closing(self._train()) as events:
                for event in events:
                    self.folder.append(event)
                    loss = getattr(event, "loss", None)
                    loss = state.loss if loss is None else loss
                    state = dataclasses.replace(state, step=event.step, loss=loss)
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

    def _train(self) -> Generator[Event, None, None]:
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
        """Delete all checkpoints but the newest few and the best, and what a crash left half-written."""
        newest = complete(self.folder.checkpoints)[-self.config.keep_checkpoints :]
        kept = {*newest, self.folder.checkpoint(progress.best_step or 0)}
        for path in self.folder.checkpoints.iterdir():
            if path not in kept and (path.name.isdecimal() or path.name.startswith(".")):
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
    folder.check_free(overwrite=overwrite)
    run = _assemble(config, folder, None)
    rejected = [dataclasses.asdict(r) for d in (run.data, run.eval_data) if d for r in d.rejected]
    with new_folder(folder.path) as temporary:
        write_text(temporary / "config.toml", run.config.to_toml())
        write_json(temporary / "plan.json", _plan_of(run))
        RunFolder(temporary).write_lines("rejected.jsonl", rejected)
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
    run = _assemble(folder.config(), folder, latest(folder.checkpoints))
    _check_unchanged(run)
    return run


def _assemble(config: RunConfig, folder: RunFolder, checkpoint: Path | None) -> Run:
    base = load_base(config.model, config.dtype, allow_pickle=config.allow_pickle, quantize=config.quantize)
    config = config.model_copy(
        update={"cutoff_length": choose_cutoff(config.cutoff_length, base.model.config, config.model)}
    )
    data = load_data(config.data, config, base)
    eval_data = load_data(config.eval_data, config, base) if config.eval_data else None
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
    task = causal_lm(base)
    if config.activation_checkpointing:
        keep_less(base)
    return Run(folder, config, base, model, task, data, eval_data, checkpoint)


def keep_less(base: BaseModel) -> None:
    """Let the base compute its layers again in the backward pass, in place of keeping their activations.

    Raises:
        ConfigError: the model knows no such way.
    """
    if not getattr(base.model, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"activation_checkpointing: {type(base.model).__name__} cannot compute its layers again; "
            "leave it out, or lower micro_batch_size."
        )
    checkpoint_activations(base.model, {"use_reentrant": False})


def causal_lm(base: BaseModel) -> CausalLM:
    """Return next-token prediction as `base` needs it. Raises as `find_isolation`."""
    vocabulary = base.model.get_input_embeddings().num_embeddings
    isolation = find_isolation(base.model, vocabulary, base.device, base.dtype)
    direct = head_is_last(base.model, vocabulary, base.device)
    return CausalLM(base.tokenizer.pad_token_id, isolation, base.device, base.dtype, direct)


def load_data(path: str, config: RunConfig, base: BaseModel) -> Dataset:
    """Return the examples of a data file under the run's settings. Raises as `load_dataset`."""
    return load_dataset(
        Path(path),
        base.tokenizer,
        cutoff_length=choose_cutoff(config.cutoff_length, base.model.config, base.name),
        overlap_length=config.overlap_length,
        format=config.format,
        template=config.template,
    )


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
        "eval_fingerprint": run.eval_data.fingerprint if run.eval_data else None,
    }


def peak_memory() -> int:
    """Return the largest resident memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
