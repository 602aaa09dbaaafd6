"""XLabs' files for FLUX: ``double_blocks.N.processor.qkv_lora1.down.weight``; 1 is the image, 2 the text."""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.errors import AdapterError
from loralab.tools.formats._build import Hints, build, only_factors, sort_keys

_KEY = re.compile(r"(double_blocks\.\d+)\.processor\.(qkv|proj)_lora([12])(\.(?:down|up)\.weight)")
_PATH = re.compile(r"(?:\w+\.)?(double_blocks\.\d+)\.(img|txt)_attn\.(qkv|proj)")
_STREAMS = {"1": "img", "2": "txt"}


def matches(keys: Collection[str]) -> bool:
    """All keys are those of XLabs' attention processors."""
    return bool(keys) and all(_KEY.fullmatch(key) for key in keys)


def read(tensors: Mapping[str, Tensor], hints: Hints) -> Adapter:
    """Return the adapter over FLUX's own modules, scale 1. Raises as `build`."""
    named = {
        _KEY.sub(lambda m: f"{m[1]}.{_STREAMS[m[3]]}_attn.{m[2]}{m[4]}", k): t for k, t in tensors.items()
    }
    modules, rest = sort_keys(named, {".down.weight": "a", ".up.weight": "b"})
    return build(modules, rest, hints)


def write(adapter: Adapter) -> dict[str, Tensor]:
    """Return XLabs' tensors, the scale multiplied into B.

    Raises:
        AdapterError: a module is none of the attention of FLUX's double blocks.
    """
    only_factors(adapter, "XLabs")
    tensors: dict[str, Tensor] = {}
    for path, factors in adapter.modules().items():
        found = _PATH.fullmatch(path)
        if not found:
            raise AdapterError(f"{path}: XLabs files adapt the attention of FLUX's double blocks only.")
        number = {name: digit for digit, name in _STREAMS.items()}[found[2]]
        name = f"{found[1]}.processor.{found[3]}_lora{number}"
        b_OR = factors.b_OR if factors.scaling == 1 else factors.b_OR * factors.scaling
        tensors |= {f"{name}.down.weight": factors.a_RI, f"{name}.up.weight": b_OR}
    return tensors
