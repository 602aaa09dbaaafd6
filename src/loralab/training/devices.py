"""The processes that train one run together, each on a device of its own: how they share work, and agree.

Each process has the whole adapter and computes a part of every batch; the sum of their gradients is the
batch's, as each part is divided by the weight of the whole batch. The first process alone writes, prints and
listens. All of it does nothing in a run of one process.
"""

import heapq
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from loralab.errors import ConfigError, LoralabError, TrainingError
from loralab.training.control import Wishes

__all__ = ["ALONE", "Processes", "SharedWishes", "join"]

T = TypeVar("T")

_PATIENCE = timedelta(days=1)
"""How long one process waits for another that is alive: the first one may have a file to tokenize."""
_BUCKET = 1 << 26
"""Numbers that are summed at a time."""
_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where torchrun, accelerate and mpirun say how many processes there are."""
_LOST = "Connection (closed|reset)|Broken pipe|remote process exited"
"""What torch says when a process cannot be reached; elsewhere its errors may be of other kinds."""
_REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed is not used: set shard = true, which splits the base as its ZeRO "
    "stage 3 does, and leave --use_deepspeed out",
    "ACCELERATE_USE_FSDP": "set shard = true in the run's settings, and leave --use_fsdp out",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not used; leave --use_megatron_lm out",
    "ACCELERATE_MIXED_PRECISION": "mixed_precision has no effect: dtype, a setting of the run, says how the "
    "base computes; launch with --mixed_precision no",
    "ACCELERATE_DYNAMO_BACKEND": "dynamo_backend has no effect: set compile = true, a setting of the "
    "run, and launch with --dynamo_backend no",
}


@dataclass(frozen=True)
class Processes:
    """One of the processes of a run, as it sees them all."""

    number: int = 0
    """This one's, from 0."""
    count: int = 1
    backend: str = ""
    """What carries their messages: gloo, nccl, ..."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where what they exchange has to lie."""
    in_step: bool = False
    """Whether all must make the same passes through the model, as they do where its weights are split."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, prints and listens."""
        return self.number == 0

    # agreement

    def of_first(self, act: Callable[[], T]) -> T:
        """Return what the first process makes by `act`, on all of them; it is sent as a pickle.

        Raises:
            LoralabError: what `act` raised there, on all.
        """
        if self.count == 1:
            return act()
        outcome: list[Any] = [_outcome(act) if self.first else None]
        with _reaching():
            dist.broadcast_object_list(outcome, src=0, device=self.device)
        value, error = outcome[0]
        if error is not None:
            raise error
        made: T = value
        return made

    def together(self, act: Callable[[], T]) -> T:
        """Return what `act` makes here, if it succeeds everywhere.

        Raises:
            LoralabError: what it raised in the first process in which it failed, on all.
        """
        if self.count == 1:
            return act()
        made, error = _outcome(act)
        errors: list[LoralabError | None] = [None] * self.count
        with _reaching():
            dist.all_gather_object(errors, error)
        for number, found in enumerate(errors):
            if found is not None:
                raise type(found)(f"process {number}: {found}" if number else str(found))
        value: T = made
        return value

    def in_turn(self, act: Callable[[], T]) -> T:
        """Return what `act` makes here, where the others find what the first one put into a cache.

        Raises as `together`.
        """
        made: list[T] = []
        self.of_first(lambda: made.append(act()))
        return self.together(lambda: made[0] if made else act())

    def adopt(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that they have in the first process."""
        for tensor in tensors if self.count > 1 else ():
            with _reaching():
                dist.broadcast(tensor.detach(), src=0)

    # work

    def passes(
        self, examples: Sequence[T], size: Callable[[T], int], micro: int
    ) -> list[tuple[Sequence[T], bool]]:
        """Return this process's micro-batches of some examples, and whether each counts.

        One that does not count is there to keep step with the others: its loss is to be multiplied by 0.
        """
        if self.count == 1:
            return [(part, True) for part in _cut(examples, micro)]
        shares = [_cut(share, micro) for share in _deal(examples, size, self.count)]
        own = [(part, True) for part in shares[self.number]]
        missing = max(map(len, shares)) - len(own) if self.in_step else 0
        return own + [(examples[:1], False)] * missing

    def passing(self) -> AbstractContextManager[None]:
        """Return a context for passes through the model, which ask the others where its weights are split.

        Raises TrainingError if one of them is gone.
        """
        return _reaching(_LOST) if self.in_step else nullcontext()

    def begin_step(self, seed: int, step: int) -> None:
        """Give this process the random numbers of a step. The first has its own, which checkpoints keep."""
        if not self.first:
            torch.manual_seed(random.Random(f"{seed} {step} {self.number}").getrandbits(63))

    def add_gradients(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        """Give each parameter the sum of its gradients in all processes; return the sum of the losses.

        A parameter that has a gradient in none is left without. The sums are made in fp32, or fp64 for fp64,
        in one message for every 64 million numbers.
        """
        if self.count == 1:
            return loss
        total = self.total([loss])[0]
        for bucket in _buckets(parameters):
            dtype = torch.float64 if any(p.dtype == torch.float64 for p in bucket) else torch.float32
            sizes = [parameter.numel() for parameter in bucket]
            flat = torch.zeros(sum(sizes) + len(bucket), dtype=dtype, device=bucket[0].device)
            *parts, present = flat.split([*sizes, len(bucket)])
            for index, (parameter, part) in enumerate(zip(bucket, parts, strict=True)):
                if parameter.grad is not None:
                    part.copy_(parameter.grad.reshape(-1))
                    present[index] = 1
            with _reaching():
                dist.all_reduce(flat)
            for parameter, part, somewhere in zip(bucket, parts, present.tolist(), strict=True):
                parameter.grad = part.view_as(parameter).to(parameter.dtype) if somewhere else None
        return total

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sum over all processes of each value."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _reaching():
            dist.all_reduce(sums)
        return sums.tolist()

    def leave(self) -> None:
        """End the connection, when all is done."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Processes()


class SharedWishes:
    """What is asked of the first process's run, on all of them: all must ask in step."""

    def __init__(self, processes: Processes, read: Callable[[], Wishes]) -> None:
        self._processes = processes
        self._read = read
        self._stopped = False

    def __call__(self) -> Wishes:
        """Return what the first process reads now. After a stop there is nothing more to ask."""
        if self._stopped:
            return Wishes(stop=True)
        return self._send(self._read() if self._processes.first else Wishes())

    def dismiss(self) -> None:
        """Let the others hear at their next question that they are to stop; for the first process."""
        if not self._stopped:
            self._send(Wishes(stop=True))

    def _send(self, wishes: Wishes) -> Wishes:
        goal = float("nan") if wishes.stop_at_loss is None else wishes.stop_at_loss
        numbers = [float(wishes.stop), float(wishes.pause), float(wishes.saves), goal]
        told = torch.tensor(numbers, dtype=torch.float64, device=self._processes.device)
        with _reaching():
            dist.broadcast(told, src=0)
        stop, pause, saves, goal = told.tolist()
        self._stopped = bool(stop)
        return Wishes(bool(stop), bool(pause), int(saves), None if goal != goal else goal)


def join(device: torch.device) -> Processes:
    """Return the processes that `torchrun`, `accelerate launch` or `mpirun` has started; else this one alone.

    `device` is what each of them computes on; of several alike, each takes the one of its place.

    Raises:
        ConfigError: `accelerate` was told to do what is a setting of the run.
    """
    _check_launcher()
    if max(int(os.environ.get(name) or 1) for name in _COUNTS) == 1:
        return ALONE
    # Not above: to import it takes a second, which a run of one process need not wait.
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)
    own = device if device.type == "cpu" else state.device  # accelerate says "cpu:0"
    return Processes(state.process_index, state.num_processes, dist.get_backend(), own)


def _check_launcher() -> None:
    for name, instead in _REFUSED.items():
        if os.environ.get(name, "").lower() not in ("", "no", "false", "0"):
            raise ConfigError(f"accelerate: {instead}.")


def _outcome(act: Callable[[], T]) -> tuple[Any, LoralabError | None]:
    try:
        return act(), None
    except LoralabError as error:
        return None, error


@contextmanager
def _reaching(sign: str = "") -> Iterator[None]:
    """Within the block the others are waited for.

    Raises:
        TrainingError: one of them is gone: torch raised an error with such a sign in it.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, LoralabError) or not re.search(sign, str(error)):
            raise
        raise TrainingError(
            "another process of this run has ended, so this one cannot go on. The last checkpoint is kept: "
            "go on with 'loralab resume', on as many processes as you like."
        ) from error


def _deal(examples: Sequence[T], size: Callable[[T], int], count: int) -> list[list[T]]:
    """Return the examples in `count` shares of about equal size: the largest first, to the least laden."""
    laden = [(0, number) for number in range(count)]
    shares: list[list[int]] = [[] for _ in range(count)]
    sizes = [size(example) for example in examples]
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        load, number = heapq.heappop(laden)
        shares[number].append(index)
        heapq.heappush(laden, (load + sizes[index], number))
    return [[examples[index] for index in sorted(share)] for share in shares]


def _cut(examples: Sequence[T], micro: int) -> list[Sequence[T]]:
    return [examples[start : start + micro] for start in range(0, len(examples), micro)]


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    count = 0
    for parameter in parameters:
        if bucket and count + parameter.numel() > _BUCKET:
            yield bucket
            bucket, count = [], 0
        bucket.append(parameter)
        count += parameter.numel()
    if bucket:
        yield bucket
