"""Adapter folders as PEFT is today, and those of PEFT 0.1 and 0.2 that adapt parts of a fused layer.

With ``enable_lora`` those layers cut their O outputs into as many equal runs of rows as the list has
entries, and adapt the runs that say true. A is [R, I] and B a convolution of kernel 1 in G groups,
[O', R / G, 1], where O' counts the outputs of the adapted runs (`MergedLinear.forward` of PEFT 0.2.0, after
loralib's layer of that name):

    delta = lora_alpha / r * zero_pad(conv1d(A, B, groups=G))

Such a convolution is a product with a block-diagonal matrix, so a plain B of [O, R] says the same: group g
stands in its own rows and in columns g R / G to (g + 1) R / G, and rows that are not adapted are 0. What a
model keeps in those rows does not matter. BLOOM's query_key_value goes head by head, so [true, false, true]
adapts the first and the last third of its heads, not q and v; that is what was trained.

Shape key: I in, O out, R rank, G groups.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loralab.adapters import read_adapter
from loralab.adapters.peft_format import CONFIG_FILE, read_tensors
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.derived import with_scales
from loralab.core.peft_config import read_json
from loralab.errors import AdapterError

__all__ = ["read_current", "read_fused", "says_fused"]

_FUSED = "enable_lora"
_GONE = (_FUSED, "merge_weights")
"""Settings of PEFT 0.2 that today's configs lack; the second one only said when to merge."""
_A, _B = ".lora_A.weight", ".lora_B.weight"


def read_current(folder: Path, *, allow_pickle: bool = False) -> Adapter:
    """Return the adapter in a folder of today's format.

    Raises:
        AdapterError: it cannot be read, or it adapts parts of fused layers; then says what makes it readable.
    """
    if says_fused(folder):
        raise AdapterError(
            f"{folder / CONFIG_FILE}: {_FUSED} is of PEFT 0.2 and older, for parts of a fused layer; write "
            f"the adapter as a plain one: loralab convert {folder} --out FOLDER"
            f"{'' if any(folder.glob('*.safetensors')) else ' --allow-pickle'}."
        )
    return read_adapter(folder, allow_pickle=allow_pickle)


def says_fused(folder: Path) -> bool:
    """Return whether the config in `folder` adapts parts of fused layers."""
    return bool(read_json(folder).get(_FUSED))


def read_fused(folder: Path, *, allow_pickle: bool = False) -> Adapter:
    """Return the adapter in a folder with ``enable_lora`` as a plain one, of the same numbers and deltas.

    Raises:
        AdapterError: it cannot be read, or its shapes are not those of the settings.
    """
    values = read_json(folder)
    where = folder / CONFIG_FILE
    enabled = _enabled(values[_FUSED], where)
    kept = {name: value for name, value in values.items() if name not in _GONE}
    config = LoraConfig.from_dict(kept, where=str(where))
    tensors = dict(read_tensors(folder, allow_pickle=allow_pickle))
    rank = config.r * sum(enabled)
    paths = [key.removesuffix(_A) for key in tensors if key.endswith(_A)]
    for path in paths:
        if path + _B not in tensors:
            raise AdapterError(f"{folder}: {path}{_A} is there without {path}{_B}; is the copy complete?")
        fault = _fault(tensors[path + _A], tensors[path + _B], rank, sum(enabled))
        if fault:
            raise AdapterError(f"{folder}: {path} has {fault}. Was {CONFIG_FILE} changed?")
        tensors[path + _B] = _block_diagonal(tensors[path + _B], enabled, rank)
        if f"{path}.bias" in tensors:
            tensors[f"{path}.base_layer.bias"] = tensors.pop(f"{path}.bias")
    if not paths:
        raise AdapterError(f"{folder}: no tensor ends in {_A}; is the copy complete?")
    alpha = config.lora_alpha * sum(enabled)
    return Adapter(with_scales(config, dict.fromkeys(paths, (rank, alpha))), tensors)


def _enabled(value: Any, where: Path) -> list[bool]:
    if not isinstance(value, list) or not all(isinstance(entry, bool) for entry in value) or not any(value):
        raise AdapterError(
            f"{where}: {_FUSED} is {value!r}; expected true or false for each part of the fused layer, such "
            "as [true, false, true]."
        )
    return value


def _fault(a: Tensor, b: Tensor, rank: int, parts: int) -> str | None:
    """Return how the shapes differ from those of `parts` adapted parts with `rank` in all."""
    fits = a.dim() == 2 and a.shape[0] == rank and b.dim() == 3 and b.shape[2] == 1
    groups = rank // b.shape[1] if fits and b.shape[1] and rank % b.shape[1] == 0 else 0
    if groups and not b.shape[0] % groups and not b.shape[0] % parts:
        return None
    return (
        f"A {list(a.shape)} and B {list(b.shape)}; with r = {rank // parts} and {parts} parts adapted, "
        f"expected A [{rank}, inputs] and B [outputs, rank of a group, 1]"
    )


def _block_diagonal(b: Tensor, enabled: Sequence[bool], rank: int) -> Tensor:
    """Return the plain B, [O, R], of a grouped one, [O', R / G, 1]."""
    blocks = b.squeeze(2).chunk(rank // b.shape[1])
    height = b.shape[0] // sum(enabled)
    b_OR = b.new_zeros(height * len(enabled), rank)
    adapted = torch.tensor(enabled).repeat_interleave(height)
    b_OR[adapted] = torch.block_diag(*blocks)
    return b_OR
