"""Makes a run fit the memory: how much it takes, and what to change where that is too much."""

import heapq
from collections.abc import Sequence
from importlib.util import find_spec

from torch import nn

from loralab.adapters.kbit import checkpoint_activations
from loralab.data.dataset import Dataset
from loralab.errors import ConfigError
from loralab.models import BaseModel
from loralab.models.hardware import choose_device
from loralab.models.load import weight_bytes
from loralab.training.config import RunConfig
from loralab.training.forecast import Forecast, Kept, count_kept, forecast, free_memory, stack_of
from loralab.training.optimizers import states_of
from loralab.training.tasks.causal_lm import CausalLM

__all__ = ["fit", "fit_base", "keep_less", "plan_memory"]

Share = tuple[RunConfig, Dataset]


def plan_memory(model: nn.Module, base: BaseModel, task: CausalLM, shares: Sequence[Share]) -> Forecast:
    """Return how much memory it takes to train on a micro-batch of each of the runs at once.

    If they leave it open, as few layers are to be computed again as lets it fit.
    """
    kept = count_kept(model, task, shares[0][1].examples)
    given = shares[0][0].activation_checkpointing
    again = None if given is None and knows_to_recompute(base) else len(kept.layers) if given else 0
    return _forecast(kept, model, base, task, shares, again)


def fit(config: RunConfig, model: nn.Module, base: BaseModel, task: CausalLM, data: Dataset) -> RunConfig:
    """Return the settings with the largest micro-batch that fits the memory, if need be with layers that are
    computed again.

    Raises:
        ConfigError: even one example at a time does not fit.
    """
    kept = count_kept(model, task, data.examples)
    sizes = [n for n in range(config.batch_size, 0, -1) if config.batch_size % n == 0]
    ways = [(0, False), (len(kept.layers), True)] if knows_to_recompute(base) else [(0, False)]
    for again, recompute in ways:
        for size in sizes:
            tried = config.model_copy(
                update={"micro_batch_size": size, "activation_checkpointing": recompute}
            )
            if _forecast(kept, model, base, task, [(tried, data)], again).fits:
                return tried
    least = _forecast(kept, model, base, task, [(tried, data)], ways[-1][0])
    raise ConfigError(
        f"even one example at a time takes {least.total / 1e9:.2g} GB above the base, and "
        f"{(least.free or 0) / 1e9:.2g} GB are free; lower cutoff_length or r, or take a smaller model."
    )


def fit_base(config: RunConfig) -> RunConfig:
    """Return the settings with the base in 4 bits if it would take more than half of the free memory."""
    free, size = free_memory_for(config), weight_bytes(config.model)
    if config.quantize is not None or config.full or free is None or size is None or size <= free / 2:
        return config
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"the base takes {size / 1e9:.2g} of {free / 1e9:.2g} GB; in 4 bits it would fit: "
            "pip install 'loralab[quant]'."
        )
    return config.model_copy(update={"quantize": "nf4"})


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


def free_memory_for(config: RunConfig, base: BaseModel | None = None) -> int | None:
    """Return the bytes that a run may take: what is free, or less if the settings say so."""
    free = free_memory(choose_device() if base is None else base.device)
    if config.max_memory is None:
        return free
    allowed = round(config.max_memory * 1e9)
    return allowed if free is None else min(free, allowed)


def _forecast(
    kept: Kept, model: nn.Module, base: BaseModel, task: CausalLM, shares: Sequence[Share], again: int | None
) -> Forecast:
    tokens = 0
    for config, data in shares:
        largest = heapq.nlargest(config.micro, data.examples.lengths)
        tokens += sum(largest) if task.isolation == "documents" else largest[0] * len(largest)
    config = shares[0][0]
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    held = round(trained * (1 + states_of(config)))
    return forecast(kept, tokens, held, free_memory_for(config, base), again)
