"""loralab: fine-tune, inspect, combine, switch and serve low-rank adapters (LoRA) of any transformer."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loralab.adapters import PeftModel, get_peft_model, read_adapter, write_adapter
    from loralab.core.adapter import Adapter
    from loralab.core.config import LoraConfig, TaskType
    from loralab.core.model import LoraModel

__version__ = "0.1.0"
__all__ = [
    "Adapter",
    "LoraConfig",
    "LoraModel",
    "PeftModel",
    "TaskType",
    "get_peft_model",
    "read_adapter",
    "write_adapter",
]

_HOMES = {
    "Adapter": "loralab.core.adapter",
    "LoraConfig": "loralab.core.config",
    "LoraModel": "loralab.core.model",
    "PeftModel": "loralab.adapters",
    "TaskType": "loralab.core.config",
    "get_peft_model": "loralab.adapters",
    "read_adapter": "loralab.adapters",
    "write_adapter": "loralab.adapters",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'loralab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
