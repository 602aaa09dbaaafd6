"""PEFT's names of adapted layers and models."""

from loralab.adapters.functional import (
    cast_adapter_dtype,
    delete_adapter,
    set_adapter,
    set_requires_grad,
)
from loralab.adapters.inspecting import (
    check_target_module_exists,
    inspect_matched_modules,
)
from loralab.adapters.inspecting import (
    find_minimal_target_modules as _find_minimal_target_modules,
)
from loralab.adapters.inspecting import (
    include_all_linear_layers as _maybe_include_all_linear_layers,
)
from loralab.adapters.inspecting import (
    key_prefixes as _get_tuner_state_dict_key_prefixes,
)
from loralab.adapters.inspecting import (
    under_prefixes as _filter_state_dict_by_key_prefixes,
)
from loralab.core.layers.switchable import (
    Switchable as BaseTunerLayer,
)
from loralab.core.model import (
    LoraModel as BaseTuner,
)

__all__ = [
    "BaseTuner",
    "BaseTunerLayer",
    "_filter_state_dict_by_key_prefixes",
    "_find_minimal_target_modules",
    "_get_tuner_state_dict_key_prefixes",
    "_maybe_include_all_linear_layers",
    "cast_adapter_dtype",
    "check_target_module_exists",
    "delete_adapter",
    "inspect_matched_modules",
    "set_adapter",
    "set_requires_grad",
]
