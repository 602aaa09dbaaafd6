"""What the formats share: from factors with alphas to an `Adapter`, and refusals.

Shape key: I in, O out, R rank.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.derived import with_scales
from loralab.core.targets import shorten
from loralab.errors import AdapterError, ConfigError
from loralab.tools.parts import rest_of

__all__ = ["Hints", "Module", "build", "only_factors", "refuse_others", "sort_keys"]

_OTHERS = {
    "lokr_": "LoKr factors, a Kronecker product",
    "hada_": "LoHa factors, an entrywise product",
    "dora_scale": "a DoRA magnitude of LyCORIS' kind, which PEFT's adapters do not have",
    "lora_magnitude_vector": "a DoRA magnitude",
    "lora_mid": "a Tucker core between its factors",
    "oft_": "OFT blocks",
    ".diff": "a full difference",
}


@dataclass(frozen=True)
class Hints:
    """What the user knows and a file may not say."""

    lora_alpha: float | None = None
    base: str | None = None
    """The name of the base model."""
    modules: frozenset[str] = frozenset()
    """The paths of the base model's modules; empty where they are not known."""


@dataclass
class Module:
    """The tensors of one adapted module, as they are collected."""

    a: Tensor | None = None
    b: Tensor | None = None
    bias: Tensor | None = None
    alpha: float | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)


def sort_keys(
    tensors: Mapping[str, Tensor], endings: Mapping[str, str]
) -> tuple[dict[str, Module], dict[str, Tensor]]:
    """Return (modules by the name before the ending, the tensors with no such ending).

    `endings` says which field of `Module` an ending fills.
    """
    modules: dict[str, Module] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        ending = next((e for e in endings if key.endswith(e)), None)
        if ending is None:
            rest[key] = tensor
            continue
        module = modules.setdefault(key.removesuffix(ending), Module())
        setattr(module, endings[ending], float(tensor) if endings[ending] == "alpha" else tensor)
    return modules, rest


def refuse_others(keys: Collection[str]) -> None:
    """Refuse tensors that an `Adapter` cannot express.

    Raises:
        AdapterError: names the first, says what it is and how many there are.
    """
    for mark, meaning in _OTHERS.items():
        found = sorted(key for key in keys if mark in key)
        if found:
            raise AdapterError(
                f"{found[0]} is {meaning}; that is no product B A with a scale and cannot be expressed "
                f"({len(found)} such tensors)."
            )


def build(
    modules: Mapping[str, Module], rest: Mapping[str, Tensor], hints: Hints, needs_alpha: str | None = None
) -> Adapter:
    """Return the adapter of these modules by path, with their own alphas; `rest` is saved in full.

    A module that names no alpha has alpha = rank; a format whose files never do gives `needs_alpha`, why.

    Raises:
        AdapterError: a factor is missing, a pair does not multiply, or no alpha is known where it matters.
    """
    if needs_alpha and hints.lora_alpha is None:
        raise AdapterError(f"{needs_alpha} Give it: --lora-alpha, or lora_alpha=...")
    if hints.lora_alpha is not None and all(m.alpha is not None for m in modules.values()):
        raise AdapterError(f"lora_alpha={hints.lora_alpha:g} has no effect: the file says every module's.")
    tensors: dict[str, Tensor] = dict(rest)
    scales: dict[str, tuple[int, float]] = {}
    for path, module in modules.items():
        a, b = _pair(path, module)
        rank = a.shape[0]
        alpha = module.alpha if module.alpha is not None else hints.lora_alpha or rank
        scales[path] = rank, alpha
        tensors |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
        if module.bias is not None:
            tensors[f"{path}.lora_B.bias"] = module.bias
    if not scales:
        raise AdapterError("the file holds no pair of factors.")
    saved = sorted({key.rpartition(".")[0] for key in rest})
    try:
        config = LoraConfig(
            base_model_name_or_path=hints.base,
            target_modules=shorten(list(scales), hints.modules) if hints.modules else set(scales),
            modules_to_save=saved or None,
            lora_bias=any(module.bias is not None for module in modules.values()),
        )
    except ConfigError as error:
        raise AdapterError(f"the file cannot be expressed: {error}.") from None
    return Adapter(with_scales(config, scales), tensors)


def only_factors(adapter: Adapter, format: str) -> None:
    """Refuse what a file of factors and alphas cannot hold.

    Raises:
        AdapterError: the adapter has embeddings, or tensors that are no factors.
    """
    for key in adapter.tensors:
        if ".lora_embedding_" in key:
            raise AdapterError(f"{key}: {format} files have no adapted embeddings.")
    for key in rest_of(adapter):
        raise AdapterError(f"{key}: {format} files hold factors only, not tensors saved in full.")


def _pair(path: str, module: Module) -> tuple[Tensor, Tensor]:
    if module.a is None or module.b is None:
        missing = "A (down)" if module.a is None else "B (up)"
        raise AdapterError(f"{path}: factor {missing} is missing; is the file complete?")
    if module.a.shape[0] != module.b.shape[1]:
        raise AdapterError(
            f"{path}: B {list(module.b.shape)} times A {list(module.a.shape)} is no product; a layer that "
            "adapts only some parts of a fused weight does not say which."
        )
    return module.a, module.b
