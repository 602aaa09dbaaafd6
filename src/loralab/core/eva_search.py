"""The search for EVA's directions: batch after batch until they turn no more.

Shape key: I in, K directions that are looked for, N rows of a layer's input.
"""

import itertools
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from loralab.core.calibrate import watched
from loralab.core.config import LoraConfig
from loralab.core.init_config import EvaConfig
from loralab.core.layers import Activation, LoraLayer, wrap
from loralab.core.pca import IncrementalPca
from loralab.errors import ConfigError

__all__ = ["PrepareBatch", "PrepareRows", "Reading", "find_directions"]

_log = logging.getLogger(__name__)

_PASSES = 100
"""After so many passes over the data it is given up."""

PrepareBatch = Callable[[Any, LoraConfig], Any]
PrepareRows = Callable[[Any, Any, str], Tensor]


@dataclass(frozen=True)
class Reading:
    """How batches are run and which rows of the layers' inputs count."""

    run: Callable[[Any], object]
    prepare_batch: PrepareBatch | None
    prepare_rows: Mapping[str, PrepareRows | None]
    names: Mapping[str, str]
    """What the layers are called to the caller's functions, by path."""
    gather: bool
    log: bool


@dataclass
class _Input:
    """An input and the layers that get it, as q, k and v do; it is analysed once."""

    paths: list[str]
    most: int
    pca: IncrementalPca = field(init=False)
    turned_K: Tensor = field(init=False)
    waiting: list[Tensor] = field(default_factory=list)
    """Rows that are too few to be analysed alone."""

    def __post_init__(self) -> None:
        self.pca = IncrementalPca(self.most)
        self.turned_K = torch.zeros(self.most)

    def add(self, rows_NI: Tensor) -> None:
        self.waiting.append(rows_NI)
        if sum(len(rows) for rows in self.waiting) >= self.most:
            self.turned_K = self.pca.add(torch.cat(self.waiting))
            self.waiting = []

    def settled(self, rank: int, tau: float) -> bool:
        return bool((self.turned_K[:rank] >= tau).all())


@torch.no_grad()
def find_directions(
    modules: Mapping[str, nn.Module], data: Iterable[Any], config: LoraConfig, reading: Reading
) -> dict[str, Tensor]:
    """Return by path the directions that EVA gives to a layer: [rank, I], on its device.

    Raises:
        ConfigError: the data is empty, reaches not every layer, or the directions do not settle.
    """
    settings = config.eva_config if isinstance(config.eva_config, EvaConfig) else EvaConfig()
    device = next((p.device for m in modules.values() for p in m.parameters() if not p.is_meta), None)
    batches = _batches(data, device)
    first = next(batches)
    inputs = _inputs(modules, first, config, reading)
    budget = sum(config.rank_of(path) for path in modules)
    ranks = {path: x.most for x in inputs for path in x.paths}
    for batch in itertools.chain([first], batches):
        unsettled = [x for x in inputs if not x.settled(ranks[x.paths[0]], settings.tau)]
        if reading.log:
            _log.info("eva: %d of %d inputs are settled", len(inputs) - len(unsettled), len(inputs))
        if not unsettled:
            break
        _run(unsettled, modules, batch, config, reading)
        if all(x.pca.directions_KI is not None for x in inputs):
            ranks = _ranks(inputs, budget)
    else:
        raise ConfigError(
            f"eva: after {_PASSES} passes over the data the directions of {len(unsettled)} of {len(inputs)} "
            f"inputs still turn, the first are those of {unsettled[0].paths[0]!r}; give more data, or lower "
            "tau, rho or r."
        )
    by_path = {path: x for x in inputs for path in x.paths}
    return {path: _rows(by_path[path], ranks[path], settings.whiten) for path in modules}


def _rows(x: _Input, rank: int, whiten: bool) -> Tensor:
    if x.pca.directions_KI is None:  # tau=0 is settled before anything is seen.
        raise ConfigError("eva: tau=0 accepts any directions; set it above 0.")
    a_RI = x.pca.directions_KI[:rank].clone()
    return a_RI / x.pca.singular_K[:rank, None].sqrt() if whiten else a_RI


def _inputs(
    modules: Mapping[str, nn.Module], batch: Any, config: LoraConfig, reading: Reading
) -> list[_Input]:
    """Run a batch to see which layers get the same input."""
    settings = config.eva_config if isinstance(config.eva_config, EvaConfig) else EvaConfig()
    tensors: list[weakref.ref[Any]] = []
    seen: dict[str, list[Any]] = {path: [] for path in modules}

    def see(path: str, args: tuple[Any, ...]) -> None:
        # Weakly, so that a batch's inputs are not all kept in memory.
        known = next((n for n, tensor in enumerate(tensors) if tensor() is args[0]), len(tensors))
        if known == len(tensors):
            tensors.append(weakref.ref(args[0]))
        seen[path].append(known)

    with watched(modules, see):
        reading.run(batch)
    groups: dict[Any, list[str]] = {}
    for path, calls in seen.items():
        if not calls:
            raise ConfigError(f"eva: the data never reaches {path!r}; name it in exclude_modules.")
        groups.setdefault((*calls, reading.prepare_rows[path]), []).append(path)
    found = []
    for paths in groups.values():
        wanted = max(round(config.rank_of(path) * settings.rho) for path in paths)
        found.append(_Input(paths, min(wanted, _width(paths[0], modules[paths[0]]))))
    return found


def _width(path: str, module: nn.Module) -> int:
    layer = module if isinstance(module, LoraLayer) else wrap(module, path, Activation())
    return layer.factor_shapes(1)[0][1]


def _run(
    inputs: list[_Input], modules: Mapping[str, nn.Module], batch: Any, config: LoraConfig, reading: Reading
) -> None:
    """Run a batch and take in the inputs that are asked for."""
    by_path = {x.paths[0]: x for x in inputs}
    prepared = reading.prepare_batch(batch, config) if reading.prepare_batch else batch

    def see(path: str, args: tuple[Any, ...]) -> None:
        prepare = reading.prepare_rows[path]
        rows = prepare(args, prepared, reading.names[path]) if prepare else args[0].flatten(0, -2)
        if rows.dim() != 2:
            raise ConfigError(f"eva: the rows of {path!r} are {list(rows.shape)}; expected [rows, width].")
        by_path[path].add(_of_all_processes(rows) if reading.gather else rows)

    with watched({path: modules[path] for path in by_path}, see):
        reading.run(batch)


def _ranks(inputs: list[_Input], budget: int) -> dict[str, int]:
    """Give `budget` directions to the layers, those first that explain the largest share of an input."""
    heads = [(x.paths[0], x) for x in inputs]
    others = [(path, x) for x in inputs for path in x.paths[1:]]
    shares = [(path, share) for path, x in heads + others for share in x.pca.explained_K.tolist()]
    chosen = sorted(shares, key=lambda pair: -pair[1])[:budget]
    ranks = Counter(path for path, _ in chosen)
    for x in inputs:
        # Layers of one input tie; the first of them, which is watched, gets the most.
        sizes = sorted((ranks[path] for path in x.paths), reverse=True)
        ranks.update({path: size - ranks[path] for path, size in zip(x.paths, sizes, strict=True)})
    return {path: ranks[path] for path, _ in heads + others}


def _batches(data: Iterable[Any], device: torch.device | None) -> Iterator[Any]:
    for turn in range(_PASSES):
        empty = True
        for batch in data:
            empty = False
            yield _moved(batch, device)
        if empty and turn:
            raise ConfigError("eva: the data can be gone through only once; give a list or a DataLoader.")
        if empty:
            raise ConfigError("eva: the dataloader is empty.")


def _moved(batch: Any, device: torch.device | None) -> Any:
    if device is None:
        return batch
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_moved(value, device) for value in batch)
    return batch


def _of_all_processes(rows_NI: Tensor) -> Tensor:
    """Return the rows of all processes of a distributed run, in the order of their ranks."""
    if not dist.is_available() or not dist.is_initialized():
        return rows_NI
    size = torch.tensor([len(rows_NI)], device=rows_NI.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    padded = rows_NI.new_zeros(max(int(n) for n in sizes), rows_NI.shape[1])
    padded[: len(rows_NI)] = rows_NI
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, sizes, strict=True)])
