"""The order of the examples as a function of the step: a place in the data is a number, nothing else."""

import math

import torch


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return the optimizer steps of one pass; the last may have fewer examples."""
    return math.ceil(examples / batch_size)


def batch_at(step: int, examples: int, batch_size: int, seed: int) -> list[int]:
    """Return the indices of the examples behind optimizer step `step`, counted from 0.

    Each epoch is a permutation drawn from (seed, epoch), cut into batches.
    """
    epoch, place = divmod(step, steps_per_epoch(examples, batch_size))
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.randperm(examples, generator=generator)
    return order[place * batch_size : (place + 1) * batch_size].tolist()
