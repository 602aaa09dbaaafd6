"""How much memory a run will take, found by two small forward passes, and how many layers should keep less.

What the backward pass needs grows with the tokens of a micro-batch. It is counted as torch saves it, layer by
layer, on a few tokens; so it holds for any model, adapter and precision.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from loralab.data.types import Example
from loralab.training.tasks import Task

__all__ = ["Forecast", "Kept", "count_kept", "forecast", "free_memory", "stack_of"]

_LONGEST = 256
"""The forward passes are of as many tokens as the longest example, up to this, and of half as many."""
_SHARE = 0.9
"""A run may take this much of the free memory."""
_HEAD = 3 * (16 << 20)
"""The blocks of scores that the loss holds at most, in bytes."""
_PASSING = 0.3
"""What the backward pass through a layer holds for a while, as a part of what the layer kept."""
_OUTSIDE = -1


@dataclass(frozen=True)
class Kept:
    """Bytes that are kept for the backward pass, for each token."""

    layers: tuple[float, ...]
    """In each layer of the model's stack."""
    outside: float
    """Before the stack and behind it."""
    entry: float
    """As the input of one layer: all that is kept of a layer that is computed again."""
    scores: float
    """Not kept, but held for a while: the loss's scores of the whole vocabulary, in fp32."""


@dataclass(frozen=True)
class Forecast:
    """The memory of a run in bytes, above what is taken once its base is loaded."""

    training: int
    """Gradients and optimizer of what trains."""
    activations: int
    """What the largest micro-batch keeps for the backward pass, at most at one time."""
    workspace: int
    """What is held for a while."""
    free: int | None
    """What is free; None if the system does not tell."""
    recomputed: int = 0
    """The layers that are computed again in the backward pass, of ..."""
    layers: int = 0

    @property
    def total(self) -> int:
        """All three together."""
        return self.training + self.activations + self.workspace

    @property
    def fits(self) -> bool:
        """Whether that leaves a tenth of the free memory."""
        return self.free is None or self.total <= _SHARE * self.free


def forecast(kept: Kept, tokens: int, training: int, free: int | None, again: int | None) -> Forecast:
    """Return the forecast for micro-batches of at most so many tokens.

    `training` are the bytes of gradients and optimizer. `again` is how many layers are computed again; None:
    as few as will fit.
    """
    largest = max(kept.layers, default=0.0)

    def with_again(count: int) -> Forecast:
        entries = kept.outside + count * kept.entry
        # The layers that keep theirs are done with by the time that the first is computed again.
        activations = max(entries + sum(kept.layers[count:]), entries + largest if count else 0.0)
        return Forecast(
            training,
            round(tokens * activations),
            round(tokens * largest * _PASSING + min(_HEAD, 3 * tokens * kept.scores)),
            free,
            count,
            len(kept.layers),
        )

    if again is not None:
        return with_again(again)
    choices = map(with_again, range(len(kept.layers) + 1))
    return next((choice for choice in choices if choice.fits), with_again(len(kept.layers)))


def count_kept(model: Any, task: Task, examples: Sequence[Example]) -> Kept:
    """Return what a forward pass keeps, measured on texts made of the examples' tokens.

    Where a model's attention keeps a number for each pair of tokens, that is counted as for these texts. The
    model and torch's random generators are as they were afterwards.
    """
    stack = stack_of(model)
    some = examples[:256]
    longest = min(_LONGEST, max(len(example.ids) for example in some))
    ids = itertools.cycle([token for example in some[:16] for token in example.ids])
    sizes = (max(2, longest // 2), max(4, longest))
    was_training = model.training
    model.train()
    counts = []
    with torch.random.fork_rng():
        for tokens in sizes:
            text = Example(tuple(itertools.islice(ids, tokens)), (0.0,) + (1.0,) * (tokens - 1))
            counts.append(_count(model, task, text, stack))
    model.train(was_training)
    few, many = counts

    def each(layer: int) -> float:
        return max(0.0, (many[layer] - few[layer]) / (sizes[1] - sizes[0]))

    layers = tuple(each(index) for index in range(len(stack)))
    embedding = model.get_input_embeddings().weight
    entry = embedding.shape[1] * (embedding.element_size() if embedding.is_floating_point() else 2)
    return Kept(layers, each(_OUTSIDE), float(entry), 4.0 * embedding.shape[0])


def _count(model: Any, task: Task, text: Example, stack: Sequence[nn.Module]) -> dict[int, int]:
    """Return the bytes that are saved in each layer of the stack, and outside of it."""
    own = _places((*model.parameters(), *model.buffers()))
    gathered: set[int] = set()
    saved: dict[int, tuple[int, int]] = {}
    place = _OUTSIDE

    def enter(index: int, *_: Any) -> None:
        nonlocal place
        place = index
        # Of a base that is split, a layer's weights are somewhere else each time.
        gathered.clear()
        gathered.update(_places(stack[index].parameters()) if index != _OUTSIDE else ())

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.data_ptr() not in gathered:
            saved.setdefault(storage.data_ptr(), (place, storage.nbytes()))
        return tensor

    hooks = []
    for index, layer in enumerate(stack):
        hooks.append(layer.register_forward_pre_hook(partial(enter, index)))
        hooks.append(layer.register_forward_hook(partial(enter, _OUTSIDE)))
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = task.loss(model, [text])
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[int, int] = defaultdict(int)
    for index, size in saved.values():
        found[index] += size
    del loss  # until here, so that no storage was given out twice
    return found


def _places(tensors: Iterable[Tensor]) -> set[int]:
    """Return where tensors lie in memory; of one that is split over processes, its part here."""
    parts = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return {part.untyped_storage().data_ptr() for part in parts}


def stack_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers of the model's longest stack of one kind of module, such as its decoder layers."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    alike = [layers for layers in lists if len({type(layer) for layer in layers}) == 1]
    return max(alike, key=len, default=[])


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, None where the system does not tell.

    For a CPU: what the system could give without swapping, or less if the process's group is held to less.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    memory = Path("/proc/meminfo")
    if memory.exists():
        lines = dict(line.split(":") for line in memory.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and limit.read_text().strip().isdecimal():
        found.append(max(0, int(limit.read_text()) - int(used.read_text())))
    # What torchrun started on this machine shares it.
    return min(found) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if found else None
