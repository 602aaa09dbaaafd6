"""Diffusers' files and their kin: dotted paths after a component, ``transformer.X.lora_A.weight``.

Also with ``lora_down`` and ``lora_up``, with ``.alpha``, with ``diffusion_model.`` (ComfyUI, ai-toolkit) or
no component at all, and the attention processors of old ``unet.`` files.
"""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.tools.formats import kohya, peft
from loralab.tools.formats._build import Hints, build, only_factors, refuse_others, sort_keys

_ENDINGS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_down.weight": "a",
    ".lora_up.weight": "b",
    ".lora.down.weight": "a",
    ".lora.up.weight": "b",
    ".alpha": "alpha",
}
_PROCESSOR = re.compile(r"\.processor\.(to_[qkv]|to_out)_lora\.(down|up)\.weight$")


def matches(keys: Collection[str]) -> bool:
    """Dotted paths with factors or their relatives, but not PEFT's prefix."""
    if peft.matches(keys) or kohya.matches(keys):
        return False
    marks = (*_ENDINGS, ".lokr_w1", ".lokr_w2", ".hada_w1_a", ".dora_scale")
    return any(key.endswith(marks) or _PROCESSOR.search(key) for key in keys)


def read(tensors: Mapping[str, Tensor], hints: Hints) -> Adapter:
    """Return the adapter; without an ``.alpha`` the scale is 1, as diffusers takes it. Raises as `build`."""
    refuse_others(tensors)
    modules, rest = sort_keys({_modern(key): tensor for key, tensor in tensors.items()}, _ENDINGS)
    return build(modules, rest, hints)


def write(adapter: Adapter) -> dict[str, Tensor]:
    """Return the tensors under their own paths, the scale multiplied into B: the file has none.

    Raises:
        AdapterError: the adapter holds more than factors of linear layers and convolutions.
    """
    only_factors(adapter, "diffusers")
    scales = {path: factors.scaling for path, factors in adapter.modules().items()}
    scaled = {
        key: tensor * scales[key.removesuffix(".lora_B.weight")]
        for key, tensor in adapter.tensors.items()
        if key.endswith(".lora_B.weight") and scales[key.removesuffix(".lora_B.weight")] != 1
    }
    return dict(adapter.tensors) | scaled


def _modern(key: str) -> str:
    """Return the key as today's diffusers would write it."""
    found = _PROCESSOR.search(key)
    if not found:
        return key
    layer = "to_out.0" if found[1] == "to_out" else found[1]
    return f"{key[: found.start()]}.{layer}.lora_{found[2]}.weight"
