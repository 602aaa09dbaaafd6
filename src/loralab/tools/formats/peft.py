"""A file with PEFT's keys and no ``adapter_config.json``: ``base_model.model.X.lora_A.weight``."""

from collections.abc import Collection, Mapping

from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.tools.formats._build import Hints, build, refuse_others, sort_keys

_PREFIX = "base_model.model."
_ENDINGS = {".lora_A.weight": "a", ".lora_B.weight": "b", ".lora_B.bias": "bias"}


def matches(keys: Collection[str]) -> bool:
    """All keys have PEFT's prefix."""
    return bool(keys) and all(key.startswith(_PREFIX) for key in keys)


def read(tensors: Mapping[str, Tensor], hints: Hints) -> Adapter:
    """Return the adapter; its scale is nowhere in such a file. Raises as `build`."""
    refuse_others(tensors)
    modules, rest = sort_keys({k.removeprefix(_PREFIX): t for k, t in tensors.items()}, _ENDINGS)
    return build(modules, rest, hints, "a PEFT file without its adapter_config.json does not say lora_alpha.")


def write(adapter: Adapter) -> dict[str, Tensor]:
    """Return the adapter's tensors under PEFT's keys; ranks and alphas stand in the config alone."""
    return {_PREFIX + key: tensor for key, tensor in adapter.tensors.items()}
