"""What a run's settings stand for: the base, examples, the adapter's config, the task."""

import heapq
from collections.abc import Sequence
from pathlib import Path

from loralab.adapters import PeftModel
from loralab.adapters.kbit import checkpoint_activations
from loralab.core.config import LoraConfig
from loralab.data.dataset import Dataset, load_dataset
from loralab.errors import ConfigError
from loralab.models import BaseModel, load_base
from loralab.models.gates import set_lean_gates
from loralab.models.norms import set_lean_norms
from loralab.models.positions import choose_cutoff
from loralab.training.config import RunConfig
from loralab.training.forecast import Forecast, count_kept, forecast, free_memory, stack_of
from loralab.training.isolation import find_isolation
from loralab.training.tasks.causal_lm import CausalLM
from loralab.training.tasks.head import head_is_last

__all__ = [
    "adapter_config",
    "causal_lm",
    "keep_less",
    "load_data",
    "open_base",
    "plan_memory",
    "with_cutoff",
]


def open_base(config: RunConfig) -> BaseModel:
    """Return the base model. Raises as `load_base`."""
    return load_base(config.model, config.dtype, allow_pickle=config.allow_pickle, quantize=config.quantize)


def with_cutoff(config: RunConfig, base: BaseModel) -> RunConfig:
    """Return the settings with the cutoff that holds for this base. Raises as `choose_cutoff`."""
    cutoff = choose_cutoff(config.cutoff_length, base.model.config, config.model)
    return config.model_copy(update={"cutoff_length": cutoff})


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


def adapter_config(config: RunConfig) -> LoraConfig:
    """Return the config of the run's adapter."""
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=config.model,
    )


def causal_lm(base: BaseModel) -> CausalLM:
    """Return next-token prediction as `base` needs it. Raises as `find_isolation`."""
    vocabulary = base.model.get_input_embeddings().num_embeddings
    isolation = find_isolation(base.model, vocabulary, base.device, base.dtype)
    direct = head_is_last(base.model, vocabulary, base.device)
    set_lean_norms(base.model)
    set_lean_gates(base.model)
    return CausalLM(base.tokenizer.pad_token_id, isolation, base.device, base.dtype, direct)


def plan_memory(
    model: PeftModel, base: BaseModel, task: CausalLM, shares: Sequence[tuple[RunConfig, Dataset]]
) -> Forecast:
    """Return how much memory it takes to train on a micro-batch of each of the runs at once.

    If they leave it open, as few layers are to be computed again as lets it fit.
    """
    tokens = 0
    for config, data in shares:
        largest = heapq.nlargest(config.micro, data.examples.lengths)
        tokens += sum(largest) if task.isolation == "documents" else largest[0] * len(largest)
    kept = count_kept(model, task, shares[0][1].examples)
    given = shares[0][0].activation_checkpointing
    again = None if given is None and knows_to_recompute(base) else len(kept.layers) if given else 0
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return forecast(kept, tokens, trained, free_memory(base.device), again)


def knows_to_recompute(base: BaseModel) -> bool:
    """Return whether the base can compute its layers again in the backward pass."""
    return bool(getattr(base.model, "supports_gradient_checkpointing", False))


def keep_less(base: BaseModel, layers: int | None = None) -> None:
    """Let the first layers of the base be computed again in the backward pass; None: all of them.

    Raises:
        ConfigError: the model knows no such way.
    """
    if not knows_to_recompute(base):
        raise ConfigError(
            f"activation_checkpointing: {type(base.model).__name__} cannot compute its layers again; "
            "leave it out, or lower micro_batch_size."
        )
    checkpoint_activations(base.model, {"use_reentrant": False})
    if layers is not None:
        for layer in stack_of(base.model)[layers:]:
            layer.gradient_checkpointing = False  # type: ignore[assignment]
