"""An adapter out of a full fine-tune: the low-rank part of what changed in every matrix.

Shape key: I in, O out, R rank.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.finite import check_finite
from loralab.core.svd import Cut, leading_svd
from loralab.core.targets import shorten
from loralab.errors import AdapterError
from loralab.tools.checkpoint import Checkpoint
from loralab.tools.kinds import MATRICES, kind_of, task_of, tied_head
from loralab.tools.parts import Place, assemble

__all__ = ["ExtractedLayer", "Extraction", "Left", "extract"]

_BASE_BIAS = ".base_layer.bias"
_BLOCK = 1 << 18
"""How many numbers of a matrix are read at once."""


@dataclass(frozen=True)
class ExtractedLayer:
    """What was found in one matrix that differs."""

    module: str
    kind: str
    """linear, conv1d (GPT-2's, stored transposed), convolution, embedding or head."""
    out: int
    inputs: int
    rank: int
    norm: float
    """The Frobenius norm of the whole delta."""
    energy: float
    """The share of its square that the factors keep."""
    error: float
    """|delta - B A| / |delta|, measured."""
    excess: float
    """That error over the least possible at this rank: 1 where the SVD was exact, else an estimate."""


@dataclass(frozen=True)
class Left:
    """A tensor that differs and that the adapter does not hold."""

    name: str
    reason: str
    fits: bool = False
    """Whether it could be saved in full."""


@dataclass(frozen=True)
class Extraction:
    """The adapter, what each matrix gave, what was left out, and what was saved in full."""

    adapter: Adapter
    layers: tuple[ExtractedLayer, ...]
    left: tuple[Left, ...]
    saved: tuple[str, ...]
    same: int
    """The number of tensors that do not differ."""


def extract(
    base: str | Path,
    tuned: str | Path,
    cut: Cut,
    *,
    include_embeddings: bool = False,
    save_rest: bool = False,
) -> Extraction:
    """Return an adapter that turns the model in the folder `base` nearly into the one in the folder `tuned`.

    Both are read from their safetensors files, one matrix at a time and a few rows at once; no model is
    built. What a module is, is read off its weight's name and shape. Each delta is cut by `leading_svd`;
    scalings are 1. Memory: the largest delta in float32 and, while the rank is small beside it, little more.

    `include_embeddings` takes embeddings and output heads too (a head tied to the embedding gets the same
    factors, for an adapter reaches the two apart). `save_rest` keeps in full what is no matrix: norms and the
    like in `modules_to_save`, biases of adapted modules as `bias="lora_only"`.

    Raises:
        ModelError: a checkpoint cannot be read.
        AdapterError: the two do not belong together or do not differ, a tensor has numbers that are not
            finite, or `save_rest` meets a tensor that has no place in an adapter.
    """
    one, two = Checkpoint(base), Checkpoint(tuned)
    work = _Work(one, two, _paired(one, two), cut)
    config = two.config or one.config
    for name in work.names:
        work.take(name, kind_of(name, work.shape(name), config), include_embeddings)
    if include_embeddings:
        work.share(tied_head(work.names, config))
    if not work.factors:
        raise AdapterError(
            f"no matrix of {tuned} differs from {base}: {work.same} tensors are the same"
            + (f", and {work.left[0].name} is {work.left[0].reason}." if work.left else ".")
        )
    saved = work.rest() if save_rest else {}
    modules = sorted({key.rpartition(".")[0] for key in saved if not key.endswith(_BASE_BIAS)})
    settings = LoraConfig(
        task_type=task_of(config),
        base_model_name_or_path=str(base),
        target_modules=shorten(list(work.factors), _modules([*work.names, *work.factors])),
        fan_in_fan_out=all(layer.kind == "conv1d" for layer in work.layers),
        modules_to_save=modules or None,
        bias="lora_only" if any(key.endswith(_BASE_BIAS) for key in saved) else "none",
    )
    left = [entry for entry in work.left if not (save_rest and entry.fits)]
    there = {pair[0] for pair in work.names.values()}
    left += [Left(name, "only in the base") for name in one.tensors if name not in there]
    adapter = assemble(settings, work.factors, saved)
    check_finite(adapter, "extract it")
    return Extraction(adapter, tuple(work.layers), tuple(left), tuple(sorted(saved)), work.same)


@dataclass
class _Work:
    """Two checkpoints, the names that they share, and what has been found so far."""

    base: Checkpoint
    tuned: Checkpoint
    names: dict[str, tuple[str | None, str]]
    """A tensor's name in the model -> its names in the base's and in the tuned files."""
    cut: Cut
    factors: dict[str, tuple[Place, Tensor, Tensor]] = field(default_factory=dict)
    layers: list[ExtractedLayer] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    same: int = 0

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor in the tuned model."""
        return self.tuned.tensors[self.names[name][1]].shape

    def take(self, name: str, kind: str, include_embeddings: bool) -> None:
        """Put one tensor where it belongs: decomposed, left out with a reason, or counted as the same."""
        if self.names[name][0] is None:
            self.left.append(Left(name, "not in the base; it can be saved in full", fits=True))
            return
        delta = self._delta(name)
        path = name.rpartition(".")[0]
        if delta is None:
            self.same += 1
        elif kind in MATRICES or (include_embeddings and kind != "other"):
            self._decompose(path, kind, delta)
        elif kind == "other":
            self.left.append(Left(name, "no weight matrix; it can be saved in full", fits=True))
        else:
            self.left.append(Left(name, f"an output head or embedding ({kind}), which was not asked for"))

    def share(self, tied: tuple[str, str] | None) -> None:
        """Give a head that is tied to an adapted embedding the same factors, the other way round."""
        if tied and tied[0] in self.factors:
            _, a_RI, b_OR = self.factors[tied[0]]
            self.factors[tied[1]] = (Place(), b_OR.t(), a_RI.t())

    def rest(self) -> dict[str, Tensor]:
        """Return the tensors to save in full for those that differ and are no matrices.

        Raises:
            AdapterError: one of them has no place in an adapter.
        """
        keys: dict[str, str] = {}
        for left in (entry for entry in self.left if entry.fits):
            module, _, ending = left.name.rpartition(".")
            if module in self.factors and ending == "bias":
                biases = {f"{path}.bias": f"{path}{_BASE_BIAS}" for path in self.factors}
                keys |= {name: key for name, key in biases.items() if name in self.names}
                continue
            inside = [path for path in self.factors if path == module or path.startswith(f"{module}.")]
            if not module or inside:
                raise AdapterError(
                    f"{left.name} differs and cannot be saved in full, for {(inside or ['the model'])[0]!r} "
                    "in its module is adapted. Extract without saving the rest; it is then listed."
                )
            keys |= {name: name for name in self.names if name.startswith(f"{module}.")}
        return {key: self.tuned.read(self.names[name][1]) for name, key in keys.items()}

    def _delta(self, name: str) -> Tensor | None:
        """Return tuned - base in float32 (or wider), or None if they are the same."""
        first, second = self._both(name)
        old, new = self.base.tensors[first], self.tuned.tensors[second]
        if old.shape != new.shape:
            raise AdapterError(
                f"{name} is {list(old.shape)} in the base and {list(new.shape)} in the tuned model; an "
                "adapter cannot change a shape. Was the vocabulary resized?"
            )
        floating = old.dtype.is_floating_point and new.dtype.is_floating_point
        if not floating:
            return self._integers(name)
        dtype = torch.promote_types(torch.promote_types(old.dtype, new.dtype), torch.float32)
        delta = torch.empty(new.shape or (1,), dtype=dtype)
        step = max(1, _BLOCK // max(1, delta[0].numel())) if len(delta) else 1
        differs = False
        for start in range(0, len(delta), step):
            rows = slice(start, start + step)
            after = self.tuned.read(second, start, start + step).to(dtype)
            before = self.base.read(first, start, start + step).to(dtype)
            # Masks hold infinities: they are the same in both, and no number less itself.
            delta[rows] = (after - before).masked_fill_(after == before, 0)
            differs = differs or bool(delta[rows].any())
            if not delta[rows].isfinite().all():
                folder = self.base.folder if after.isfinite().all() else self.tuned.folder
                raise AdapterError(
                    f"{folder}: {name} has numbers that are not finite (NaN or infinity), of which no "
                    "adapter can be made. Did the training diverge? Take an earlier checkpoint."
                )
        return delta if differs else None

    def _both(self, name: str) -> tuple[str, str]:
        first, second = self.names[name]
        return first or second, second

    def _integers(self, name: str) -> Tensor | None:
        first, second = self._both(name)
        old, new = self.base.read(first), self.tuned.read(second)
        if len(new.shape) > 1 and not torch.equal(old, new):
            raise AdapterError(
                f"{name} is {new.dtype}: a quantized weight has no delta; dequantize it first."
            )
        return None if torch.equal(old, new) else new

    def _decompose(self, path: str, kind: str, delta: Tensor) -> None:
        matrix_OI = delta.t() if kind in ("conv1d", "embedding") else delta.flatten(1)
        found = leading_svd(matrix_OI, self.cut)
        kernel = tuple(delta.shape[1:]) if kind == "convolution" else ()
        self.factors[path] = (Place(kind == "embedding", kernel), *found.factors())
        out, inputs = matrix_OI.shape
        self.layers.append(
            ExtractedLayer(
                path, kind, out, inputs, found.rank, found.norm, found.energy, found.error, found.excess
            )
        )


def _paired(one: Checkpoint, two: Checkpoint) -> dict[str, tuple[str | None, str]]:
    """Return the names of the tuned model's tensors with those in the files.

    The files of a bare model ("h.0...") lack the first word of those with a head ("transformer.h.0...").
    """
    prefixes = {name.partition(".")[0] for name in one.tensors} | {""}
    pairs: dict[str, tuple[str | None, str]] = {}
    shared = 0
    for name in two.tensors:
        longer = [f"{prefix}.{name}" for prefix in prefixes if f"{prefix}.{name}" in one.tensors]
        shorter = name.partition(".")[2]
        if name in one.tensors:
            pairs[name] = (name, name)
        elif shorter in one.tensors:
            pairs[name] = (shorter, name)
        elif longer:
            pairs[longer[0]] = (longer[0], name)
        else:
            pairs[name] = (None, name)
            continue
        shared += 1
    if not shared:
        raise AdapterError(
            f"{two.folder} and {one.folder} have no tensor name in common; are they of one model?"
        )
    return pairs


def _modules(names: list[str]) -> set[str]:
    """Return the paths of all modules above the tensors `names`, and those names themselves."""
    return {name[:end] for name in names for end in range(len(name) + 1) if name[end : end + 1] in (".", "")}
