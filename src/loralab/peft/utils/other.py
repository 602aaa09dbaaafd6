"""PEFT's names of helpers."""

from loralab.adapters.helpers import (
    cast_mixed_precision_params,
    infer_device,
    shift_tokens_right,
)
from loralab.adapters.inspecting import (
    get_submodules as _get_submodules,
)
from loralab.adapters.inspecting import (
    module_names_tied_with_embedding as _get_module_names_tied_with_embedding,
)
from loralab.adapters.inspecting import (
    no_split_modules as _get_no_split_modules,
)
from loralab.adapters.kbit import (
    prepare_model_for_kbit_training,
)
from loralab.adapters.peft_format import (
    PICKLE_FILE as WEIGHTS_NAME,
)
from loralab.adapters.peft_format import (
    WEIGHTS_FILE as SAFETENSORS_WEIGHTS_NAME,
)
from loralab.adapters.peft_tables import (
    EMBEDDING_LAYER_NAMES,
    INCLUDE_LINEAR_LAYERS_SHORTHAND,
    TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING,
    fsdp_auto_wrap_policy,
    transpose,
)
from loralab.core.peft_config import (
    CONFIG_FILE as CONFIG_NAME,
)
from loralab.core.saved import (
    AuxiliaryTrainingWrapper,
    ModulesToSaveWrapper,
)
from loralab.core.targets import (
    DEFAULT_TARGETS as TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from loralab.core.tokens import (
    TrainableTokensWrapper,
)
from loralab.peft.others import (
    bloom_model_postprocess_past_key_value,
)

__all__ = [
    "CONFIG_NAME",
    "EMBEDDING_LAYER_NAMES",
    "INCLUDE_LINEAR_LAYERS_SHORTHAND",
    "SAFETENSORS_WEIGHTS_NAME",
    "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
    "TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING",
    "WEIGHTS_NAME",
    "AuxiliaryTrainingWrapper",
    "ModulesToSaveWrapper",
    "TrainableTokensWrapper",
    "_get_module_names_tied_with_embedding",
    "_get_no_split_modules",
    "_get_submodules",
    "bloom_model_postprocess_past_key_value",
    "cast_mixed_precision_params",
    "fsdp_auto_wrap_policy",
    "infer_device",
    "prepare_model_for_kbit_training",
    "shift_tokens_right",
    "transpose",
]
