"""A base with an adapter merged into its weights, written from the base's own files, shard by shard."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.core.algebra import wide
from loralab.core.variants import State, find_variant
from loralab.errors import AdapterError, ConfigError
from loralab.files import new_folder, write_json
from loralab.tools.checkpoint import INDEX_FILE, Checkpoint, find_checkpoint
from loralab.tools.kinds import kind_of, tied_head
from loralab.tools.parts import Part, parts_of, rest_of
from loralab.tools.verify import Verified, verify

__all__ = ["Exported", "MergedLayer", "export_merged"]

_COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_BASE_BIAS = ".base_layer.bias"
_B_BIAS = ".lora_B.bias"


@dataclass(frozen=True)
class MergedLayer:
    """How much of one delta the rounding to the file's dtype let through."""

    name: str
    dtype: str
    norm: float
    """|wanted|: the Frobenius norm of the delta."""
    loss: float
    """|applied - wanted| / |wanted|, where applied is the merged weight less the old one."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how it compares with the live adapter."""

    layers: tuple[MergedLayer, ...]
    replaced: tuple[str, ...]
    """Tensors that the adapter had in full."""
    files: tuple[str, ...]
    untied: bool
    """Whether the head had to be given a weight of its own beside the embedding's."""
    verified: Verified | None


def export_merged(
    base: str,
    adapter: Adapter,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    check: bool = True,
) -> Exported:
    """Write the base model with `adapter` merged into its weights, its tokenizer and configs beside them.

    Each weight is what the adapter makes of it, W + scaling * B A or DoRA's m (W + scaling * B A) / |...|,
    computed in float32 and rounded once to `dtype` (by default its own); biases of B are added to the base's.
    One of the base's files is in memory at a time and no model is built, until `check` loads the result and
    the base with the live adapter and compares their logits; the folder appears only if they agree.

    Raises:
        ModelError: the base cannot be read.
        AdapterError: the adapter does not fit the base, has what no plain weight can hold, or the exported
            model does not compute what the live adapter does.
    """
    source = find_checkpoint(base)
    checkpoint = Checkpoint(source)
    plan = _Plan.of(checkpoint, adapter, str(source))
    layers: list[MergedLayer] = []
    with new_folder(Path(out)) as folder:
        for file in checkpoint.files:
            names = [name for name, stored in checkpoint.tensors.items() if stored.file == file]
            tensors = {name: plan.apply(name, checkpoint.read(name), dtype, layers) for name in names}
            if plan.untied and plan.untied[0] in tensors:
                embedding, head = plan.untied
                tensors[head] = plan.apply(head, checkpoint.read(embedding), dtype, layers)
            save_file(tensors, folder / file.name, metadata={"format": "pt"})
        _write_rest(checkpoint, folder, plan, dtype)
        done = verify(source, adapter, folder) if check else None
    files = tuple(file.name for file in checkpoint.files)
    return Exported(tuple(layers), tuple(sorted(plan.replaced)), files, plan.untied is not None, done)


@dataclass(frozen=True)
class _Plan:
    """What is to be done to each stored tensor."""

    added: dict[str, Callable[[Tensor], Tensor]]
    """By name, what makes of a stored tensor its delta, in its shape and in float32 or wider."""
    replaced: dict[str, Tensor]
    untied: tuple[str, str] | None
    """The names of (embedding, head), where the file has one tensor for both and the result needs two."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, adapter: Adapter, base: str) -> "_Plan":
        config = checkpoint.config
        if "quantization_config" in config:
            raise AdapterError(f"{base}: its weights are quantized; export onto the unquantized base.")
        parts = parts_of(adapter, "export it")
        tied = tied_head(checkpoint.tensors, config)
        touched = set(parts) | {key.rpartition(".")[0] for key in rest_of(adapter)}
        untied = None
        if tied and touched.intersection(tied):
            untied = (f"{tied[0]}.weight", f"{tied[1]}.weight")
        names = set(checkpoint.tensors) | ({untied[1]} if untied else set())
        added: dict[str, Callable[[Tensor], Tensor]] = {}
        for path, part in parts.items():
            name = _find(f"{path}.weight", names, adapter)
            like = untied[0] if untied and name == untied[1] else name
            shape = checkpoint.tensors[like].shape
            transposed = kind_of(name, shape, config) == "conv1d"
            added[name] = _delta(adapter, part, path, shape, transposed)
        replaced = {}
        own = tuple(f".{key}" for key in find_variant(adapter.config.variant).TENSORS)
        for key, tensor in rest_of(adapter).items():
            if key.endswith(_B_BIAS):
                path = key.removesuffix(_B_BIAS)
                name = _find(f"{path}.bias", names, adapter)
                added[name] = _constant(tensor.to(wide(tensor.dtype)) * parts[path].factors.scaling)
            elif not key.endswith(own):
                wanted = key.removesuffix(_BASE_BIAS) + ".bias" if key.endswith(_BASE_BIAS) else key
                replaced[_find(wanted, names, adapter)] = tensor
        return cls(added, replaced, untied)

    def apply(
        self, name: str, weight: Tensor, dtype: torch.dtype | None, layers: list[MergedLayer]
    ) -> Tensor:
        """Return the tensor as it is to be written; a merged one is put on record in `layers`."""
        target = dtype if dtype is not None and weight.is_floating_point() else weight.dtype
        if name in self.replaced:
            tensor = self.replaced[name]
            if tensor.shape != weight.shape:
                raise AdapterError(f"{name} is {list(tensor.shape)}, the base needs {list(weight.shape)}.")
            weight = tensor.contiguous()
        if name not in self.added:
            return weight.to(target)
        delta = self.added[name](weight)
        old = weight.to(delta.dtype)
        merged = (old + delta).to(target)
        if not torch.isfinite(merged).all():
            raise AdapterError(f"{name}: merging gives weights that are not finite; nothing was written.")
        norm = float(delta.norm())
        loss = float((merged.to(delta.dtype) - old - delta).norm()) / norm if norm else 0.0
        layers.append(MergedLayer(name, str(target).removeprefix("torch."), norm, loss))
        return merged


def _delta(
    adapter: Adapter, part: Part, path: str, shape: tuple[int, ...], transposed: bool
) -> Callable[[Tensor], Tensor]:
    """Return what makes of the base's weight its delta; both have `shape`."""
    turned = transposed or part.place.lookup
    rows, columns = reversed(part.shape) if turned else part.shape
    flat = (shape[0], torch.Size(shape[1:]).numel()) if shape else (0, 0)
    if (rows, columns) != flat:
        raise AdapterError(
            f"{path}: the delta is {[rows, columns]}, the base's weight {list(shape)}. Was the adapter "
            "trained on another base?"
        )
    variant = find_variant(adapter.config.variant)
    missing = [key for key in variant.TENSORS if f"{path}.{key}" not in adapter.tensors]
    if missing:
        raise AdapterError(
            f"{path}.{missing[0]} is missing from the adapter, which is {adapter.config.variant}."
        )
    factors = part.factors

    def make(weight: Tensor) -> Tensor:
        flat_OI = weight.t() if turned else weight.flatten(1)
        state = State(
            sources=(weight, factors.a_RI, factors.b_OR),
            dense=lambda: flat_OI,
            a_RI=factors.a_RI,
            b_OR=factors.b_OR,
            scaling=factors.scaling,
            extra={key: adapter.tensors[f"{path}.{key}"].flatten() for key in variant.TENSORS},
            bias_O=None,
            per_output=lambda vector_O: vector_O,
        )
        delta_OI: Tensor = variant.delta(state)
        return (delta_OI.t() if turned else delta_OI).reshape(shape)

    return make


def _constant(delta: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: delta


def _find(name: str, names: set[str], adapter: Adapter) -> str:
    """Return the stored name of a tensor; files of a bare model lack the first word."""
    shorter = name.partition(".")[2]
    for candidate in (name, shorter):
        if candidate in names:
            return candidate
    says = adapter.config.base_model_name_or_path
    raise AdapterError(
        f"the base has no tensor {name!r}, which the adapter changes."
        + (f" It says: {says}." if says else "")
    )


def _write_rest(checkpoint: Checkpoint, folder: Path, plan: _Plan, dtype: torch.dtype | None) -> None:
    """Copy tokenizer and configs; adjust the index and ``config.json`` to what was written."""
    for path in checkpoint.folder.iterdir():
        if path.is_file() and path.suffix in _COPIED and path.name != INDEX_FILE:
            shutil.copyfile(path, folder / path.name)
    written = Checkpoint(folder)
    if (checkpoint.folder / INDEX_FILE).is_file():
        index = json.loads((checkpoint.folder / INDEX_FILE).read_text(encoding="utf8"))
        sizes = [torch.Size(s.shape).numel() * s.dtype.itemsize for s in written.tensors.values()]
        index["metadata"] = {**index.get("metadata", {}), "total_size": sum(sizes)}
        index["weight_map"] = {name: stored.file.name for name, stored in sorted(written.tensors.items())}
        write_json(folder / INDEX_FILE, index)
    config: dict[str, Any] = dict(checkpoint.config)
    if not config:
        raise ConfigError(f"{checkpoint.folder}: no config.json there, so the result would be no model.")
    if plan.untied:
        config["tie_word_embeddings"] = False
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
        config.pop("torch_dtype", None)
    write_json(folder / "config.json", config)
