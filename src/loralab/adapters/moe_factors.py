"""Factors of single experts, put together as transformers 5 keeps the experts.

Shape key: E experts, I in, O out, R rank.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loralab.adapters.moe_conversion import PARAMETERS, FormerExperts, former_experts
from loralab.core import targets
from loralab.errors import AdapterError

__all__ = ["stack_factors", "stacked_a", "stacked_b"]

_FACTOR = re.compile(r"(?P<path>.+)\.(?P<expert>\d+)\.(?P<name>[^.]+)\.lora_(?P<side>[AB])\.weight")


def stack_factors(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter's tensors with the factors of single experts put together as the model has them.

    A of a parameter is [E R, I], the experts one after the other, and B [O, R E], the experts fastest. Where
    a parameter stacks several matrices, R is the sum of their ranks and every B stands in rows and columns of
    its own. An expert without factors has zeros.

    Raises:
        AdapterError: factors of one parameter are missing or differ in shape.
    """
    table = former_experts(model)
    if table is None:
        return dict(tensors)
    modules = dict(targets.walk(model))
    kept: dict[str, Tensor] = {}
    single: dict[str, dict[tuple[str, str, int], Tensor]] = {}
    for key, tensor in tensors.items():
        place = key if _has(modules, key) else table.new_name(key)
        match = _FACTOR.fullmatch(place)
        if match is None or match["path"] not in modules:
            kept[place] = tensor
            continue
        which = (match["name"], match["side"], int(match["expert"]))
        single.setdefault(match["path"], {})[which] = tensor
    for path, factors in single.items():
        kept |= _stacked(path, modules[path], factors, table)
    return kept


def _has(modules: Mapping[str, nn.Module], key: str) -> bool:
    """Return whether the module of a tensor with this key is there under its name."""
    path = key.partition(".lora_")[0] if ".lora_" in key else key.rpartition(".")[0]
    return path.replace(".base_layer", "") in modules


def _stacked(
    path: str, module: Any, factors: Mapping[tuple[str, str, int], Tensor], table: FormerExperts
) -> dict[str, Tensor]:
    """Return the factors of one layer's experts by their keys in a file."""
    given = {name for name, _, _ in factors}
    order = [name for name, _ in module.named_parameters(recurse=False)]
    present = [p for p in sorted(PARAMETERS, key=order.index) if given & set(table.matrices[p])]
    unknown = given - {name for parts in table.matrices.values() for name in parts}
    if unknown:
        raise AdapterError(
            f"{path}: there are factors for {sorted(unknown)[0]!r}, which its experts have not."
        )
    result = {}
    for depth, parameter in enumerate(reversed(present)):
        names = table.matrices[parameter]
        count = getattr(module, parameter).shape[0]
        sides = [_both(path, name, count, factors) for name in names]
        place = path + ".base_layer" * depth
        result[f"{place}.lora_A.weight"] = stacked_a([a for a, _ in sides])
        result[f"{place}.lora_B.weight"] = stacked_b([b for _, b in sides])
    return result


def stacked_a(parts_ERI: Sequence[Tensor]) -> Tensor:
    """Return A [E R, I] of a parameter that stacks matrices with these A; R is the sum of their ranks."""
    return torch.cat(tuple(parts_ERI), dim=1).flatten(0, 1)


def stacked_b(parts_EOR: Sequence[Tensor]) -> Tensor:
    """Return B [O, R E] of a parameter that stacks matrices with these B, each in a block of its own."""
    b_EOR = torch.stack(
        [torch.block_diag(*(part[e] for part in parts_EOR)) for e in range(len(parts_EOR[0]))]
    )
    return b_EOR.permute(1, 2, 0).flatten(1)


def _both(
    path: str, name: str, count: int, factors: Mapping[tuple[str, str, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return A as [E, R, I] and B as [E, O, R] of one matrix of every expert."""
    stacks = []
    for side in "AB":
        found = {number: t for (other, s, number), t in factors.items() if (other, s) == (name, side)}
        shapes = {tuple(tensor.shape) for tensor in found.values()}
        if len(shapes) != 1 or max(found) >= count:
            state = "is missing" if not found else f"is for {max(found) + 1} experts of {count}"
            state = f"differs in shape between experts: {sorted(shapes)}" if len(shapes) > 1 else state
            raise AdapterError(f"{path}: lora_{side} of {name!r} {state}.")
        empty = torch.zeros_like(next(iter(found.values())))
        stacks.append(torch.stack([found.get(number, empty) for number in range(count)]))
    return stacks[0], stacks[1]
