"""What a run's settings stand for: the base, examples, the adapter's config, the task."""

import dataclasses

from loralab.models import BaseModel, load_base
from loralab.models.gates import set_lean_gates
from loralab.models.norms import set_lean_norms
from loralab.models.positions import choose_cutoff
from loralab.training.adapting import own_settings, usual_targets
from loralab.training.config import RunConfig
from loralab.training.isolation import find_isolation
from loralab.training.settings.optimization import usual_learning_rate
from loralab.training.tasks.causal_lm import CausalLM
from loralab.training.tasks.head import head_is_last

__all__ = [
    "causal_lm",
    "completed",
    "open_base",
    "with_settings",
]


def open_base(config: RunConfig, *, on_host: bool = False) -> BaseModel:
    """Return the base model, or with `on_host` its weights in the host's memory. Raises as `load_base`."""
    pickles, bits = config.allow_pickle, config.quantize
    return load_base(config.model, config.dtype, allow_pickle=pickles, quantize=bits, on_host=on_host)


def completed(config: RunConfig, base: BaseModel) -> RunConfig:
    """Return the settings with what is left to the base, and to the adapter that it goes on from.

    Raises as `choose_cutoff` and `own_settings`.
    """
    rate = config.learning_rate
    if rate is None:
        width = base.model.get_input_embeddings().weight.shape[1]
        rate = usual_learning_rate(width, full=config.full)
    targets = config.target_modules
    if targets is None and not config.full and config.from_adapter is None:
        targets = usual_targets(config, base.model)
    cutoff = choose_cutoff(config.cutoff_length, base.model.config, config.model)
    found = {"cutoff_length": cutoff, "learning_rate": rate, "target_modules": targets}
    return config.model_copy(update=found | own_settings(config))


def causal_lm(base: BaseModel) -> CausalLM:
    """Return next-token prediction as `base` needs it. Raises as `find_isolation`."""
    vocabulary = base.model.get_input_embeddings().num_embeddings
    isolation = find_isolation(base.model, vocabulary, base.device, base.dtype)
    direct = head_is_last(base.model, vocabulary, base.device)
    set_lean_norms(base.model)
    set_lean_gates(base.model)
    return CausalLM(base.tokenizer.pad_token_id, isolation, base.device, base.dtype, direct)


def with_settings(task: CausalLM, config: RunConfig) -> CausalLM:
    """Return the task as a run's settings want it trained."""
    return dataclasses.replace(
        task, label_smoothing=config.label_smoothing, neftune_alpha=config.neftune_alpha
    )
